"""Does what modifiers share that look at the whole model at once: depth and hidden-size pruning.

They need the model in memory and work when the recipe is initialized, so modifiers that follow
(width pruning, quantization) see what is left. Nothing remains to be done in the calibration.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from compressed_tensors.distributed import is_distributed
from llmcompressor.core import State
from llmcompressor.modifiers import Modifier
from llmcompressor.utils import eval_context
from loguru import logger
from pydantic import Field, PrivateAttr
from torch import nn

from funcnet_plugin.adapters import count_parameters
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor import checks
from funcnet_plugin.hosts.llmcompressor.borrowed import GivesBack
from funcnet_plugin.hosts.llmcompressor.description import describe, pruning_block
from funcnet_plugin.hosts.llmcompressor.fields import PlainErrors
from funcnet_plugin.hosts.llmcompressor.given_model import check_model
from funcnet_plugin.hosts.llmcompressor.tracing import trust_no_trace
from funcnet_plugin.measure.finite import check_finite_weights
from funcnet_plugin.measure.passes import on_gpu
from funcnet_plugin.measure.text import Text
from funcnet_plugin.text.batches import read_calibration
from funcnet_plugin.text.order import fix_order


class WholeModelModifier(PlainErrors, GivesBack, Modifier):
    """Prunes something else than neurons: base of the peers of functional networks.

    :param pruning_ratio: share of all parameters to remove, in (0, 1); the nearest that the method
        can reach is taken, logged, and written into config.json (block `functional_network`).
    :param seed: of the order of shuffled samples.
    """

    requires_calibration_data: bool = False  # not in the pipeline's passes

    pruning_ratio: float = Field(gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0)

    _before: int = PrivateAttr()
    _after: int = PrivateAttr()
    _report: dict[str, Any] = PrivateAttr()

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        model = state.model
        trust_no_trace()
        check_model(self, model)
        checks.refuse_width_pruning_before(self)
        if is_distributed():
            raise RecipeError(f"{type(self).__name__} runs in one process; start one.")
        calibration = kwargs.get("calib_data", state.data.calib)
        checks.count_samples(calibration)
        self.plan(model)
        fix_order(calibration, self.seed)
        text = read_calibration(calibration, model)
        self._before = count_parameters(model)
        check_finite_weights(model)
        with eval_context(model), on_gpu(model, whole=True):
            self._report = self._prune(model, text)
        self._after = count_parameters(model)  # here: quantization adds scales, width pruning cuts
        logger.info(
            f"pruned {self._before:,} -> {self._after:,} parameters: "
            f"{1 - self._after / self._before:.4f} of the model (asked: {self.pruning_ratio})"
        )
        return True

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        model = state.model
        block = pruning_block(self, model, self._before, self._after, self._before, **self._report)
        describe(model, block, self._changed_keys())
        return True

    @abstractmethod
    def plan(self, model: nn.Module) -> None:
        """Refuse what can be known to fail from the model's shapes; it may be on the meta device.

        Raises:
            FuncnetError: one sentence on what cannot be done.
        """

    @abstractmethod
    def _prune(self, model: nn.Module, text: Text) -> dict[str, Any]:
        """Prune in place.

        Returns:
            what config.json says about it, plain values.
        """

    @abstractmethod
    def _changed_keys(self) -> list[str]:
        """List the attributes of the config that pruning changed."""
