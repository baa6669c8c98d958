"""Going on where an interrupted run stopped, bit for bit; and other ratios of what one measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from llmcompressor.modifiers import Modifier
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin import __version__
from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.hosts.description import settings_of
from funcnet_plugin.pruning.collect import LayerStatistics
from funcnet_plugin.pruning.global_networks import GlobalNetworks
from funcnet_plugin.pruning.progress import (
    Progress,
    fingerprint_data,
    fingerprint_model,
    pruned_tensors,
)
from funcnet_plugin.pruning.surgery import cut_neurons, set_down_bias

# Where all layers are measured on the dense model, what is measured does not depend on these.
_OF_THE_CUT = ("pruning_ratio", "ratio_scope", "align")
_NETWORKS = "networks"


class Record:
    """What a pruning run has done, layer by layer, in a directory.

    A layer is `pruned` where layers are cut one after another, and `measured` where the cut waits
    for all of them; what was measured serves every ratio.

    Args:
        modifier: a `WidthPruningModifier`; `resume_dir` is where.
        model: dense, in memory.
        calibration: batches as the run reads them.

    Raises:
        CheckpointError: the directory holds another run.
    """

    def __init__(
        self, modifier: Modifier, model: nn.Module, calibration: Iterable[dict[str, Any]]
    ) -> None:
        settings = settings_of(modifier)
        if modifier.waits_for_all_layers():
            settings = {k: v for k, v in settings.items() if k not in _OF_THE_CUT}
        run = {
            "version": __version__,
            "settings": settings,
            "model": fingerprint_model(model),
            "data": _fingerprint(calibration),
        }
        self._progress = Progress(Path(modifier.resume_dir), run)
        self._last_groups: str | None = None

    def finished(self, block: MLPBlock) -> bool:
        return self._progress.holds(_name(block))

    def save_pruned(self, block: MLPBlock, keep: Tensor | None, report: dict[str, Any]) -> None:
        """keep: None for a layer that stays whole."""
        tensors = {} if keep is None else pruned_tensors(block, keep)
        self._progress.save(_name(block), tensors, {"report": report})

    def replay(self, block: MLPBlock) -> tuple[dict[str, Any], Tensor | None] | None:
        """Prune a layer as it was pruned; its report and kept neurons, None if it was not."""
        found = self._progress.load(_name(block))
        if found is None:
            return None
        tensors, facts = found
        keep = tensors.get("keep")
        if keep is not None:
            with torch.no_grad():
                cut_neurons(block, keep, tensors["down"])
                if "down_bias" in tensors:
                    set_down_bias(block, tensors["down_bias"])
        logger.info(f"layer {block.index}: taken over from the interrupted run")
        return facts["report"], keep

    def save_measured(
        self,
        block: MLPBlock,
        statistics: LayerStatistics,
        scores: dict[str, Tensor],
        networks: GlobalNetworks | None,
    ) -> None:
        groups = None
        if networks is not None:
            # Before the layer's own file: with that one the layer counts as done.
            groups = f"groups-{block.index:04d}"
            self._progress.save(groups, *networks.state())
        tensors, facts = statistics.state()
        tensors |= {f"score/{name}": score for name, score in scores.items()}
        self._progress.save(_name(block), tensors, {"statistics": facts})
        if groups is not None:
            self._progress.forget(self._last_groups)
            self._last_groups = groups

    def restore(
        self, block: MLPBlock, statistics: LayerStatistics, networks: GlobalNetworks | None
    ) -> dict[str, Tensor] | None:
        """Fill `statistics` as they were; the layer's scores, None if it was not measured."""
        found = self._progress.load(_name(block))
        if found is None:
            return None
        tensors, facts = found
        statistics.load_state(tensors, facts["statistics"])
        if networks is not None:
            self._last_groups = f"groups-{block.index:04d}"
            # only the last layer's groups are still there, and none once their networks are found
            found = self._progress.load(_NETWORKS) or self._progress.load(self._last_groups)
            if found is not None:
                networks.load_state(*found)
        logger.info(f"layer {block.index}: taken over from the interrupted run")
        return {
            key.removeprefix("score/"): tensor
            for key, tensor in tensors.items()
            if key.startswith("score/")
        }

    def save_written(self, name: str, windows: Tensor) -> None:
        """(n_windows, window) int64: what the model wrote."""
        self._progress.save(name, {"windows": windows}, {})

    def written(self, name: str) -> Tensor | None:
        """What `save_written` saved, if it did."""
        found = self._progress.load(name)
        return None if found is None else found[0]["windows"]

    def save_networks(self, networks: GlobalNetworks) -> None:
        """Networks across layers, once they are found."""
        if not self._progress.holds(_NETWORKS):
            self._progress.save(_NETWORKS, *networks.state())
            self._progress.forget(self._last_groups)


def _name(block: MLPBlock) -> str:
    return f"layer-{block.index:04d}"


def _fingerprint(calibration: Any) -> str:
    """Reads the data once, in the order of the run; what that draws is given back."""
    with torch.random.fork_rng(devices=[]):
        return fingerprint_data(calibration)
