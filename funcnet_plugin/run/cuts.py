"""Cuts single layers by their scores, and keeps what is known of them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loguru import logger
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.budget import select
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.cut.surgery import cut, set_output_bias
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.statistics import LayerStatistics
from funcnet_plugin.repair.checks import checked_repair
from funcnet_plugin.repair.repair import Cut, Repair
from funcnet_plugin.run.record import Record


class LayerCuts:
    """Cuts layers down to the widths of a plan and repairs their output.

    Args:
        plan: its widths must be decided when the first layer is cut.
        repair: of the recipe.
        after_cut: called with every unit whose shapes have changed.
        processes: others that cut the same layers.
        record: where finished layers are kept; None where only measured ones are, or nothing.

    Attributes:
        kept: layer -> pieces that are left, of layers that were cut.
        reports: layer -> what was measured in it, of layers that are done, cut or whole.
    """

    def __init__(
        self,
        plan: WidthPlan,
        repair: Repair,
        after_cut: Callable[[Unit], None],
        processes: Processes | None,
        record: Record | None,
    ) -> None:
        self._plan, self._processes, self._record = plan, processes, record
        self._repair, self._after_cut = repair, after_cut
        self.kept: dict[int, list[int]] = {}
        self.reports: dict[int, dict[str, Any]] = {}

    def cut(
        self, unit: Unit, score: Tensor, statistics: LayerStatistics, report: dict[str, Any]
    ) -> None:
        """Cut a layer and repair its output.

        Args:
            score: (width,).
            statistics: of the uncut unit.
            report: plain values.
        """
        width = self._plan.kept[unit.index]
        self.reports[unit.index] = report
        keep = None
        if width < unit.width:
            keep = select(score, width)
            if self._processes is not None:
                keep = self._processes.from_first(keep)
            if not self.kept:
                self._warn_of_little_text(statistics, width)
            known = {"moments": statistics.moments} if statistics.moments is not None else {}
            keep = keep.to(unit.device)
            told = Cut(unit, keep, {n: known[n] for n in self._repair.needs})
            repaired = checked_repair(self._repair, told, self._repair.repaired(told))
            cut(unit, keep, repaired.output_weight)
            if repaired.bias is not None:
                set_output_bias(unit, repaired.bias)
            self._after(unit, keep)
        if self._record is not None:
            self._record.save_pruned(unit, keep, report)

    def _warn_of_little_text(self, statistics: LayerStatistics, width: int) -> None:
        """Warn of the first layer that is cut, which stands for all."""
        if statistics.moments is None:
            return
        few = self._repair.too_little(statistics.moments.count, width, statistics.n_samples)
        if few is not None:
            logger.warning(few)

    def replay(self, unit: Unit) -> bool:
        """Cut a layer as the interrupted run did, if it did."""
        found = None if self._record is None else self._record.replay(unit)
        if found is None:
            return False
        self.reports[unit.index], keep = found
        if keep is not None:
            self._after(unit, keep)
        return True

    def _after(self, unit: Unit, keep: Tensor) -> None:
        self.kept[unit.index] = keep.tolist()
        self._after_cut(unit)
        logger.info(
            f"layer {unit.index}: kept {len(keep)} of {self._plan.original[unit.index]} neurons"
        )
