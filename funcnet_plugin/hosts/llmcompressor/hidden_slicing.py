"""Deletes principal axes of the hidden states: SliceGPT as a modifier."""

from __future__ import annotations

from itertools import chain
from typing import Any

from loguru import logger
from pydantic import Field
from torch import nn

from funcnet_plugin.adapters import count_parameters
from funcnet_plugin.cut.budget import check_step, far_from_asked
from funcnet_plugin.errors import AdapterError, BudgetError, RecipeError
from funcnet_plugin.hosts.llmcompressor import checks
from funcnet_plugin.hosts.llmcompressor.neighbours import SPARSE, check_inputs
from funcnet_plugin.hosts.llmcompressor.whole_model import WholeModelModifier
from funcnet_plugin.measure.finite import check_finite_weights
from funcnet_plugin.measure.text import Text
from funcnet_plugin.peers.slicing import (
    fuse_norms,
    parameters_after,
    principal_axes,
    slice_hidden,
)


class HiddenSlicingModifier(WholeModelModifier):
    """Rotates the hidden states of a LLaMA to their principal axes and deletes the last ones.

    This is SliceGPT (arXiv 2401.15024).
    Needs the whole model in memory. Shortcuts in the residual connections and a head of its own
    come in addition and are counted, so small ratios cost many axes. The checkpoint is of model
    type `sliced_llama`, which loads where this package is installed and is refused elsewhere.

    :param multiple_of: the hidden size that is left is a multiple of this.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            HiddenSlicingModifier:
              pruning_ratio: 0.2
    """

    multiple_of: int = Field(default=8, ge=1)

    def plan(self, model: nn.Module) -> None:
        size = self._size(model)
        before, after = checks.neighbours(self)
        for other in chain(before, after):
            if "transform_config" in type(other).model_fields:
                raise RecipeError(
                    f"{type(other).__name__} rotates hidden states and does not know the shortcuts "
                    "of a sliced model; leave one of the two out."
                )
        for other in before:
            if all(hasattr(other, field) for field in SPARSE):
                raise RecipeError(
                    f"{type(other).__name__} sets weights to zero before slicing turns all of "
                    "them, which fills the zeros again; put slicing first."
                )
        check_inputs(after, _inputs(model, size), "slicing", "multiple_of: {}")

    def _size(self, model: nn.Module) -> int:
        """Find the hidden size that comes nearest to the ratio.

        Raises:
            AdapterError: not a LLaMA.
            BudgetError: no size is small enough, or the largest removes far more than asked.
        """
        if type(model).__name__ != "LlamaForCausalLM":
            raise AdapterError(
                f"slicing hidden states is there for LlamaForCausalLM only, not for "
                f"{type(model).__name__}; compare it on a LLaMA."
            )
        hidden, before = model.config.hidden_size, count_parameters(model)
        target = (1 - self.pruning_ratio) * before
        sizes = range(self.multiple_of, hidden, self.multiple_of)
        counts = {size: parameters_after(model, size) for size in sizes}
        if not counts or min(counts.values()) > target:
            raise BudgetError(
                f"pruning_ratio={self.pruning_ratio} cannot be reached by slicing hidden states "
                f"of {hidden} in steps of {self.multiple_of}; lower the ratio or multiple_of."
            )
        # a size that saves nothing, shortcuts included, is no cut
        counts = {s: n for s, n in counts.items() if n < before}
        size = min(counts, key=lambda s: abs(counts[s] - target))
        steps = f"hidden sizes are multiples of {self.multiple_of}, and shortcuts come in addition"
        check_step(self.pruning_ratio, 1 - max(counts.values()) / before, steps)
        if far := far_from_asked(self.pruning_ratio, 1 - counts[size] / before, steps):
            logger.warning(far)
        return size

    def _prune(self, model: nn.Module, text: Text) -> dict[str, Any]:
        size, hidden = self._size(model), model.config.hidden_size
        # The head dimension is the quotient of two sizes unless it is said.
        model.config.head_dim = model.model.layers[0].self_attn.head_dim
        fuse_norms(model)
        slice_hidden(model, principal_axes(model, text), size)
        check_finite_weights(model)  # rotated in float64, and float16 may not hold what came out
        logger.info(f"hidden size {hidden} -> {size}")
        return {"original_hidden_size": hidden, "hidden_size": size}

    def _changed_keys(self) -> list[str]:
        return ["model_type", "architectures", "hidden_size", "head_dim", "rms_norm_eps",
                "tie_word_embeddings"]  # fmt: skip


def _inputs(model: nn.Module, size: int) -> dict[str, tuple[nn.Module, int]]:
    """Find the projections that read hidden states, and how many numbers they will read."""
    return {
        path: (module, size)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not path.endswith(("o_proj", "down_proj"))
    }
