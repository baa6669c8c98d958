"""The cut of single layers by their scores, and what is known of it afterwards."""

from __future__ import annotations

from typing import Any

from loguru import logger
from torch import Tensor

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.hosts.requantize import renew_quantization
from funcnet_plugin.hosts.resume import Record
from funcnet_plugin.hosts.width_plan import WidthPlan
from funcnet_plugin.pruning.budget import select
from funcnet_plugin.pruning.collect import LayerStatistics
from funcnet_plugin.pruning.compensation import too_little_text
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.surgery import cut_and_repair


class LayerCuts:
    """Cuts layers down to the widths of a plan.

    Args:
        plan: its widths must be decided when the first layer is cut.
        compensation, ridge: see `WidthPruningModifier`.
        processes: others that cut the same layers.
        record: where finished layers are kept; None where only measured ones are, or nothing.

    Attributes:
        kept: layer -> neurons that are left, of layers that were cut.
        reports: layer -> what was measured in it, of layers that are done, cut or whole.
    """

    def __init__(
        self,
        plan: WidthPlan,
        compensation: str,
        ridge: float | str,
        processes: Processes | None,
        record: Record | None,
    ) -> None:
        self._plan, self._processes, self._record = plan, processes, record
        self._compensation, self._ridge = compensation, ridge
        self.kept: dict[int, list[int]] = {}
        self.reports: dict[int, dict[str, Any]] = {}

    def cut(
        self, block: MLPBlock, score: Tensor, statistics: LayerStatistics, report: dict[str, Any]
    ) -> None:
        """Cut a layer and repair its output.

        Args:
            score: (width,).
            statistics: of the uncut layer.
            report: plain values; `ridge` joins them where it was chosen.
        """
        width = self._plan.kept[block.index]
        self.reports[block.index] = report
        keep = None
        if width < block.width:
            keep = select(score, width)
            if self._processes is not None:
                keep = self._processes.from_first(keep)
            moments, held_out = statistics.moments, statistics.held_out
            if self._compensation == "least_squares" and not self.kept:
                self._warn_of_little_text(moments.count, width)
            ridge = cut_and_repair(block, keep, self._compensation, moments, self._ridge, held_out)
            if held_out is not None:
                report["ridge"] = ridge
            self._after(block, keep)
        if self._record is not None:
            self._record.save_pruned(block, keep, report)

    def _warn_of_little_text(self, tokens: int, width: int) -> None:
        """Of the first layer that is cut, which stands for all."""
        few = too_little_text(tokens, width, continued=False)
        if few is not None:
            logger.warning(few)

    def replay(self, block: MLPBlock) -> bool:
        """Cut a layer as the interrupted run did, if it did."""
        found = None if self._record is None else self._record.replay(block)
        if found is None:
            return False
        self.reports[block.index], keep = found
        if keep is not None:
            self._after(block, keep)
        return True

    def _after(self, block: MLPBlock, keep: Tensor) -> None:
        self.kept[block.index] = keep.tolist()
        for module in block.projections:
            renew_quantization(module)
        logger.info(
            f"layer {block.index}: kept {len(keep)} of {self._plan.original[block.index]} neurons"
        )
