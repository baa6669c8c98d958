"""Drops decoder layers: ShortGPT and Shortened LLaMA as a modifier."""

from __future__ import annotations

from typing import Any, Literal

from loguru import logger
from pydantic import Field
from torch import nn

from funcnet_plugin.adapters import bind, count_parameters
from funcnet_plugin.cut.budget import check_step, far_from_asked
from funcnet_plugin.errors import BudgetError
from funcnet_plugin.hosts.llmcompressor.moved_norms import follow_moved_layers
from funcnet_plugin.hosts.llmcompressor.whole_model import WholeModelModifier
from funcnet_plugin.measure.text import Text
from funcnet_plugin.peers.depth import (
    PER_LAYER_KEYS,
    block_influence,
    check_layers_may_move,
    drop_layers,
    perplexity_without,
)

_ONE_LAYER = "whole layers go (WidthPruningModifier takes neurons)"


class DepthPruningModifier(WholeModelModifier):
    """Drops the decoder layers that are needed least, all at once; nothing is repaired.

    Needs the whole model in memory. The result is a stock checkpoint with fewer layers.

    :param score: `block_influence` (ShortGPT, arXiv 2403.03853: one minus the cosine between what
        enters a layer and what leaves it) or `perplexity` (Shortened LLaMA, arXiv 2402.02834: of
        the calibration data without the layer; one pass per layer).
    :param skip_first: layers kept whatever their score, at the beginning.
    :param skip_last: the same at the end.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            DepthPruningModifier:
              pruning_ratio: 0.2
              score: block_influence
    """

    score: Literal["block_influence", "perplexity"] = "block_influence"
    skip_first: int = Field(default=0, ge=0)
    skip_last: int = Field(default=0, ge=0)

    def plan(self, model: nn.Module) -> None:
        path = bind(model, try_mlps=False).adapter.layers
        self._target(model, path)
        check_layers_may_move(model, path)

    def _target(self, model: nn.Module, path: str) -> float:
        """Count the parameters to remove.

        Raises:
            BudgetError: so many, or so few, cannot be.
        """
        layers = model.get_submodule(path)
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        choice = range(self.skip_first, len(layers) - self.skip_last)
        total = count_parameters(model)
        target = self.pruning_ratio * total
        largest = sum(sizes[i] for i in choice)
        if len(choice) == len(layers):
            largest -= min(sizes)  # one layer must stay
        if largest <= 0 or target > largest + max(sizes) / 2:
            raise BudgetError(
                f"pruning_ratio={self.pruning_ratio} cannot be reached by dropping layers: at most "
                f"{max(largest, 0) / total:.4f} of the parameters are in those "
                "that may go; lower the ratio, or skip fewer layers."
            )
        check_step(self.pruning_ratio, min(sizes[i] for i in choice) / total, _ONE_LAYER)
        return target

    def _prune(self, model: nn.Module, text: Text) -> dict[str, Any]:
        path = bind(model, try_mlps=False).adapter.layers
        layers = list(model.get_submodule(path))
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        choice = range(self.skip_first, len(layers) - self.skip_last)
        target = self._target(model, path)
        measure = block_influence if self.score == "block_influence" else perplexity_without
        scores = measure(model, layers, text)
        if len({scores[i] for i in choice}) == 1 < len(choice):
            logger.warning(
                f"{self.score} is {scores[choice[0]]:g} for every layer that may go, so it does "
                "not say which are needed least, and the first ones go."
            )
        order = sorted(choice, key=lambda i: (scores[i], i))
        dropped: list[int] = []
        removed = 0
        for i in order[: len(layers) - 1]:
            if dropped and abs(removed + sizes[i] - target) >= abs(removed - target):
                break
            dropped.append(i)
            removed += sizes[i]
        keep = [i for i in range(len(layers)) if i not in dropped]
        total = count_parameters(model)
        if far := far_from_asked(self.pruning_ratio, removed / total, _ONE_LAYER):
            logger.warning(far)
        self._when_the_run_ends(follow_moved_layers(model, path, keep))
        drop_layers(model, path, keep)
        logger.info(f"dropped layers {sorted(dropped)}; {self.score}: {scores}")
        return {"original_layers": len(layers), "kept_layers": keep, "layer_scores": scores}

    def _changed_keys(self) -> list[str]:
        return ["num_hidden_layers", *PER_LAYER_KEYS]
