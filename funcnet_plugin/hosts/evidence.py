"""What a run's scorers are given: what is known of the whole dense model before layers are
calibrated one by one, and each layer's own moments after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.hosts.gradients import gradients_for
from funcnet_plugin.hosts.own_calibration import own_moments
from funcnet_plugin.pruning.compensation import Moments
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.scorers import LayerEvidence, LossGradients, Scorer
from funcnet_plugin.pruning.vocabulary import strongest_answers


class Evidence:
    """Measured when it is made, as far as these scorers need it.

    Args:
        model: dense, in memory.
        calibration: batches as the run reads them.
        blocks: the MLPs that are still to be scored; none: nothing is measured.
        scorers: of the run.
        processes: others that read other samples.
        moments: whether moments of inner activations are needed at all.
        own_windows: what the model wrote; None where `own_text` is 0.
        fisher_labels, own_text, token_share, seed: see `WidthPruningModifier`.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Iterable[dict[str, Any]],
        blocks: Sequence[MLPBlock],
        scorers: Sequence[Scorer],
        processes: Processes | None,
        *,
        moments: bool,
        fisher_labels: str,
        own_text: float,
        own_windows: Tensor | None,
        token_share: float,
        seed: int,
    ) -> None:
        self._scorers, self._seed, self._with_moments = scorers, seed, moments
        self._own: dict[int, Moments] = {}
        self._unseen: Tensor | None = None  # of the first layer: what `token_share` adds
        if own_windows is not None and moments and blocks:
            self._own = own_moments(model, calibration, own_windows, blocks, own_text)
        self._gradients: dict[int, LossGradients] = gradients_for(
            scorers,
            model,
            calibration,
            blocks,
            processes,
            drawn_by=seed if fisher_labels == "model" else None,
        )
        first = next((block for block in blocks if block.index == 0), None)
        if token_share and first is not None:
            self._unseen = token_share * strongest_answers(model, first)

    def new_moments(self, block: MLPBlock) -> Moments | None:
        """What the calibration tokens of a layer are added to: its moments on the model's own text.
        None if none are needed. Once per layer."""
        if not self._with_moments:
            return None
        own = self._own.pop(block.index, None)
        return Moments(block.width) if own is None else own

    def scores(self, block: MLPBlock, moments: Moments | None) -> dict[str, Tensor]:
        """Scorer -> (width,), of a layer whose moments are complete."""
        if block.index == 0 and self._unseen is not None and moments is not None:
            moments = moments.with_own_activity(self._unseen)
        evidence = LayerEvidence(block, moments, self._gradients.get(block.index), self._seed)
        return {scorer.name: scorer.score(evidence) for scorer in self._scorers}
