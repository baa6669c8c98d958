"""Goes on where an interrupted run stopped, bit for bit, also with another ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.plan import AUTO
from funcnet_plugin.cut.surgery import cut, set_output_bias
from funcnet_plugin.measure.fingerprint import fingerprint_model
from funcnet_plugin.measure.statistics import LayerStatistics
from funcnet_plugin.measure.store import Store
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.scorer import Scoring

# Where all layers are measured on the dense model, what is measured does not depend on these.
_OF_THE_CUT = ("pruning_ratio", "ratio_scope", "align")
_NETWORKS = "networks"


class Record:
    """Keeps what a run has done, layer by layer, in a directory.

    A layer is `pruned` where layers are cut one after another, and `measured` where the cut waits
    for all of them; what was measured serves every ratio.

    Args:
        directory: made if it is not there.
        settings: of the recipe, and the version: plain values.
        waits: whether the cut waits for all layers.
        model: dense, in memory.
        text: calibration data as the run reads it.

    Attributes:
        store: holds the parts; what the model wrote goes there too.

    Raises:
        CheckpointError: the directory holds another run.
    """

    def __init__(
        self, directory: Path, settings: dict[str, Any], waits: bool, model: nn.Module, text: Text
    ) -> None:
        # with `auto` the heads that layers are measured without depend on the ratio
        if waits and settings.get("heads_ratio") != AUTO:
            settings = {k: v for k, v in settings.items() if k not in _OF_THE_CUT}
        run = {
            "settings": settings,
            "model": fingerprint_model(model),
            "data": text.fingerprint(),
        }
        self.store = Store(directory, run)
        self._last_groups: str | None = None

    def finished(self, unit: Unit) -> bool:
        """Tell whether a layer was done, cut or measured."""
        return self.store.holds(_name(unit))

    def save_pruned(self, unit: Unit, keep: Tensor | None, report: dict[str, Any]) -> None:
        """Keep a layer that is done.

        Args:
            keep: None for a layer that stays whole.
        """
        tensors = {}
        if keep is not None:
            tensors = {"keep": keep, "down": unit.output_weight}
            if unit.output.bias is not None:
                tensors["down_bias"] = unit.output.bias
        self.store.save(_name(unit), tensors, {"report": report})

    def replay(self, unit: Unit) -> tuple[dict[str, Any], Tensor | None] | None:
        """Prune a layer as the interrupted run did, if it did; its report and kept pieces."""
        found = self.store.load(_name(unit))
        if found is None:
            return None
        tensors, facts = found
        keep = tensors.get("keep")
        if keep is not None:
            with torch.no_grad():
                cut(unit, keep, tensors["down"])
                if "down_bias" in tensors:
                    set_output_bias(unit, tensors["down_bias"])
        logger.info(f"layer {unit.index}: taken over from the interrupted run")
        return facts["report"], keep

    def save_measured(
        self,
        unit: Unit,
        statistics: LayerStatistics,
        scores: dict[str, Tensor],
        across: Scoring | None,
    ) -> None:
        """Keep a layer that is measured and waits for the others.

        Args:
            across: what its scorer keeps between layers, if one does.
        """
        groups = None
        if across is not None:
            # Before the layer's own file: with that one the layer counts as done.
            groups = f"groups-{unit.index:04d}"
            self.store.save(groups, *across.state())
        tensors, facts = statistics.state()
        tensors |= {f"score/{name}": score for name, score in scores.items()}
        self.store.save(_name(unit), tensors, {"statistics": facts})
        if groups is not None:
            self.store.forget(self._last_groups)
            self._last_groups = groups

    def restore(
        self, unit: Unit, statistics: LayerStatistics, across: Scoring | None
    ) -> dict[str, Tensor] | None:
        """Fill `statistics` as they were; the layer's scores, None if it was not measured."""
        found = self.store.load(_name(unit))
        if found is None:
            return None
        tensors, facts = found
        statistics.load_state(tensors, facts["statistics"])
        if across is not None:
            self._last_groups = f"groups-{unit.index:04d}"
            # only the last layer's groups are still there, and none once their networks are found
            found = self.store.load(_NETWORKS) or self.store.load(self._last_groups)
            if found is not None:
                across.load_state(*found)
        logger.info(f"layer {unit.index}: taken over from the interrupted run")
        return {
            key.removeprefix("score/"): tensor
            for key, tensor in tensors.items()
            if key.startswith("score/")
        }

    def save_networks(self, across: Scoring) -> None:
        """Keep networks across layers, once they are found."""
        if not self.store.holds(_NETWORKS):
            self.store.save(_NETWORKS, *across.state())
            self.store.forget(self._last_groups)


def _name(unit: Unit) -> str:
    return f"layer-{unit.index:04d}"
