"""Tunes the whole pruned model to predict what the dense one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from loguru import logger
from pydantic import Field

from funcnet_plugin.adapters import Unit
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.repair.enough import too_little_text
from funcnet_plugin.repair.least_squares import LeastSquares
from funcnet_plugin.repair.pruned_model import PrunedModel
from funcnet_plugin.repair.repair import Repair
from funcnet_plugin.repair.tuning import tune, tuning_bytes


class Distillation(LeastSquares):
    """Tunes all projections, attention's too, to the dense model's predictions.

    Units are first repaired as by `least_squares`. Once all are cut, a low-rank change of every
    projection is learned by gradient steps through the whole model, and folded into the weights.

    :param epochs: how often the gradient steps go over the text.
    :param continuations: windows that the model writes for every calibration sample, going on from
        16 of its tokens: more text of the same kind, for this repair alone.
    :param ridge: regularisation of the least squares, relative to the mean second moment.
    """

    name = "distillation"
    source = "after Hinton et al. 2015, arXiv 1503.02531, by LoRA, Hu et al. 2021, arXiv 2106.09685"
    tunes_the_model: ClassVar[bool] = True

    epochs: int = Field(default=1, ge=1)
    continuations: int = Field(default=0, ge=0)

    @property
    def windows_to_write(self) -> int:
        return self.continuations

    def tune(self, pruned: PrunedModel) -> dict[str, float]:
        tuned = tune(
            pruned.model,
            pruned.units,
            pruned.predicted,
            epochs=self.epochs,
            seed=pruned.seed,
            processes=pruned.processes,
        )
        logger.info(
            "distilled: on held-out samples the predictions are "
            f"{tuned.divergence_before:.4f} -> {tuned.divergence:.4f} nats from the dense model's"
        )
        return {
            "divergence": tuned.divergence,
            "divergence_before_distillation": tuned.divergence_before,
        }

    def tuning_bytes(self, units: Sequence[Unit]) -> int:
        return tuning_bytes(units)

    @property
    def tuning_passes(self) -> int:
        return self.epochs

    def too_little(self, tokens: int, width: int, samples: int) -> str | None:
        return too_little_text(tokens, width, samples)


@hookimpl
def funcnet_repairs() -> list[type[Repair]]:
    return [Distillation]
