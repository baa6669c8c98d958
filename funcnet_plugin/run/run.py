"""Prunes in one run: measures each layer, scores, cuts and repairs it, in the right order.

The host sends the calibration text through the model and says what has passed; everything else
happens here. Layers are cut one after another, so that each is measured on the already pruned
model, unless something in the request waits for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar, counter, ticking
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.cut.surgery import complete_biases
from funcnet_plugin.errors import CalibrationError, DecompositionError, RecipeError
from funcnet_plugin.measure.finite import check_finite_weights
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.recorder import Recorder, RegisterHook
from funcnet_plugin.measure.sample import Sample
from funcnet_plugin.measure.statistics import LayerStatistics
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.pruned_model import PrunedModel
from funcnet_plugin.run import stages
from funcnet_plugin.run.ahead import Ahead, measure_ahead
from funcnet_plugin.run.clock import Clock
from funcnet_plugin.run.cuts import LayerCuts
from funcnet_plugin.run.head_cuts import cut_heads
from funcnet_plugin.run.record import Record
from funcnet_plugin.run.request import Request
from funcnet_plugin.run.scorings import Scores, Scorings
from funcnet_plugin.run.surveyed import check_place, leave_atlas
from funcnet_plugin.score.union import combined
from funcnet_plugin.screen import span
from funcnet_plugin.text.cache import TextCache


class Run:
    """Prunes one model as a request says.

    Making one plans the run, and refuses what can be known to fail from the model's shapes. Then
    come `begin`, `record` before the text is sent through the model, `layers_passed` after each
    part of it, and `finish`.

    Args:
        request: what is asked for.
        model: before pruning; may be on the meta device, to plan only.
        n_samples: of calibration; None where that is not known.

    Attributes:
        plan: the units of the model, and their widths before and after.
        tuned: what was found while the whole model was tuned, by name; empty where it was not.
        reached: share of the scope that goes; None until the widths are decided.
        kept_heads: per layer the key-value heads that are left; None where heads were not cut.
        clock: what the stages took.

    Raises:
        FuncnetError: one sentence on what cannot be done.
    """

    def __init__(self, request: Request, model: nn.Module, n_samples: int | None = None) -> None:
        self.request = request
        self.plan = WidthPlan(
            model,
            ratio=request.pruning_ratio,
            scope=request.ratio_scope,
            align=request.align,
            skip_first=request.skip_first,
            skip_last=request.skip_last,
            ignore=request.ignore,
            one_width=request.allocation == "uniform",
            heads_ratio=request.heads_ratio,
        )
        if request.atlas:
            check_place(request)
        request.repair.check(self.plan.layout.adapter, self.plan.prunable)
        for scorer in request.scorers:
            scorer.check(self.plan.prunable, n_samples, request.setting)
        self.reached: float | None = None
        self._decide_widths()
        self.kept_heads: list[list[int]] | None = None
        self.tuned: dict[str, float] = {}
        self.clock = Clock()
        self._calibrating = ExitStack()  # holds the bar of that stage, and its time
        self._model = model
        self._ahead = Ahead()
        self._processes: Processes | None = None  # None: one process
        self._record: Record | None = None
        self._scorings: Scorings | None = None
        self._statistics: dict[int, LayerStatistics] = {}
        self._scores: dict[int, Scores] = {}  # waiting for one cut
        self._cuts: LayerCuts | None = None

    @property
    def leaves_one_width(self) -> bool:
        """Tell whether all layers will have one width."""
        widths = self.plan.kept or self.plan.budget.uniform()
        return self.request.allocation == "uniform" and len(set(widths)) == 1

    @property
    def kept(self) -> dict[int, list[int]]:
        """Give layer -> pieces that are left, of layers that were cut."""
        return {} if self._cuts is None else self._cuts.kept

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Give what was measured, layer by layer, of layers that are done; plain values."""
        done = {} if self._cuts is None else self._cuts.reports
        return [done[index] for index in sorted(done)]

    @property
    def unfinished(self) -> list[int]:
        """List the layers that may be cut and are not done."""
        done = {} if self._cuts is None else self._cuts.reports
        return [unit.index for unit in self.plan.prunable if unit.index not in done]

    def begin(
        self,
        text: Text,
        processes: Processes | None = None,
        resume: tuple[str, dict[str, Any]] | None = None,
        after_cut: Callable[[Unit], None] = lambda unit: None,
        cache: TextCache | None = None,
        decode: Callable[[int], str] = str,
    ) -> None:
        """Check weights and text, and measure what is measured of the whole dense model.

        Args:
            text: the calibration data, in the order of the run.
            processes: others that read other samples.
            resume: a directory for what is finished, and what must be the same to go on from
                there, plain values; None: nothing is kept.
            after_cut: called with every unit whose shapes have changed.
            cache: of what models wrote in other runs; None: none.
            decode: gives the text of a token, for an atlas.

        Raises:
            FuncnetError: one sentence on what cannot be done.
        """
        request, units = self.request, self.plan.prunable
        lengths = [len(sample) for sample in text.samples]
        for scorer in request.scorers:
            scorer.check_text(units, lengths, shared=processes is not None)
        if processes is not None and request.atlas:
            raise RecipeError("an atlas is left by runs of one process; leave atlas out.")
        if processes is not None and resume is not None:
            raise RecipeError("resume_dir is for runs of one process; leave it out.")
        self._say_plan()
        check_finite_weights(self._model)
        if request.atlas:
            with self.clock.stage(stages.SURVEY):
                blocks = self.plan.layout.blocks
                leave_atlas(request, self._model, blocks, units, text, decode)
            self.request = request = request.behind_survey
        self._processes, waits, todo = processes, request.waits_for_all_layers, units
        if resume is not None:
            directory, settings = resume
            self._record = Record(Path(directory), settings, waits, self._model, text)
            todo = [unit for unit in units if not self._record.finished(unit)]
        kept = None if waits else self._record  # where all layers wait, it is of what was measured
        self._cuts = LayerCuts(self.plan, request.repair, after_cut, processes, kept)
        n_samples = len(lengths) if processes is None else processes.total(len(lengths))
        setting = replace(request.setting, n_samples=n_samples)
        self._scorings = Scorings(request.scorers, setting)
        store = None if self._record is None else self._record.store
        self._ahead = measure_ahead(
            request,
            self._model,
            self.plan.layout.blocks,
            todo,
            text,
            processes,
            store,
            cache,
            self.clock,
        )
        if self.plan.heads is not None:
            heads_were_open = self.plan.heads_are_open
            with self.clock.stage(stages.HEADS):
                self.kept_heads = cut_heads(
                    self.plan, self._model, text, request.repair, processes, after_cut
                )
            if heads_were_open:
                self._decide_widths()
                self._say_plan()

    def _decide_widths(self) -> None:
        """Decide on one width, if there is to be one and it is known how many heads go."""
        if self.request.allocation == "uniform" and not self.plan.heads_are_open:
            self.reached = self.plan.decide_uniform()

    def _say_plan(self) -> None:
        if self.plan.heads is not None and not self.plan.heads_are_open:
            logger.info(f"heads: {self.plan.heads.said()} stay in every layer")
        if self.reached is not None:
            logger.info(
                f"widths will be {span(self.plan.kept)}: {self.reached:.4f} of the "
                f"{self.request.ratio_scope} removed (asked: {self.request.pruning_ratio})"
            )

    def record(self, register_hook: RegisterHook) -> None:
        """Hook the units that are still to be measured; replay or restore the others.

        Args:
            register_hook: see `Recorder`.
        """
        for unit in self.plan.prunable:
            if self._cuts.replay(unit):
                continue
            moments = self._ahead.new_moments(unit) if "moments" in self.request.needs else None
            self._statistics[unit.index] = self._scorings.new_statistics(unit, moments)
            if not self._restore(unit):
                Recorder(unit, register_hook, partial(self._add_sample, unit))
        self._calibrating.enter_context(self.clock.stage(stages.CALIBRATION))
        todo = len(self._statistics.keys() - self._scores.keys())
        self._bar = self._calibrating.enter_context(counter(todo, "calibrating layers", "layer"))

    def close(self) -> None:
        """End the bar of the calibration: it is over, or has failed."""
        self._calibrating.close()

    @torch.no_grad()
    def layers_passed(self, modules: Collection[nn.Module]) -> None:
        """Score the units that all of the text went through; cut them, unless the cut waits.

        Args:
            modules: of the part of the model that the text went through.

        Raises:
            CalibrationError: no sample reached a unit.
            NumbersError: a statistic or a score is not finite.
        """
        present = set(modules)
        for unit in self.plan.prunable:
            waiting = unit.index in self._statistics and unit.index not in self._scores
            if not waiting or not set(unit.projections) <= present:
                continue
            measured = self._statistics[unit.index]
            if measured.n_samples == 0:
                raise CalibrationError(
                    f"no calibration sample reached layer {unit.index}; give data to oneshot "
                    "and use its default pipeline."
                )
            if self._processes is not None:
                measured.merge(self._processes)
            measured.check_finite(unit)
            with self.clock.stage(stages.SCORING), ticking(f"scoring layer {unit.index}"):
                known, seed = self._ahead.of_unit(unit), self.request.seed
                scores = self._scorings.of_layer(unit, measured, known, seed)
            self._bar.update()
            if not self.request.waits_for_all_layers:
                self._prune(unit, combined([scores])[0])
                continue
            self._scores[unit.index] = scores
            measured.wait()
            if self._record is not None:
                self._record.save_measured(unit, measured, scores, self._scorings.across)

    @torch.no_grad()
    def finish(self) -> None:
        """Cut all layers, where the cut waited for them."""
        self.close()
        units = self.plan.prunable
        if self.request.waits_for_all_layers and len(self._scores) == len(units):
            self._complete_scores()
            layers = [self._scores[unit.index] for unit in units]
            if self.plan.kept is None:
                together = combined(layers)
                self.plan.decide_by_threshold(together)
            else:
                together = [combined([layer])[0] for layer in layers]
            waiting = list(zip(units, together, strict=True))
            for unit, score in bar(waiting, "cutting and repairing layers", "layer"):
                self._prune(unit, score)
        self._scores.clear()
        if self.request.repair.tunes_the_model and not self.unfinished:
            with self.clock.stage(stages.DISTILLATION):
                self.tuned = self._tune()
        if self.request.repair.adds_bias and self.kept:
            complete_biases(self.plan.layout.blocks)

    def _tune(self) -> dict[str, float]:
        """Have the repair tune the model; what the dense one predicted is let go afterwards."""
        predicted, self._ahead.predicted = self._ahead.predicted, []
        return self.request.repair.tune(
            PrunedModel(
                self._model,
                self.plan.layout.blocks,
                predicted,
                self.request.seed,
                self._processes,
            )
        )

    def _restore(self, unit: Unit) -> bool:
        """Take over what the interrupted run measured of a layer."""
        if self._record is None or not self.request.waits_for_all_layers:
            return False
        scores = self._record.restore(unit, self._statistics[unit.index], self._scorings.across)
        if scores is not None:
            self._scores[unit.index] = scores
        return scores is not None

    def _add_sample(self, unit: Unit, sample: Sample) -> None:
        sample.check_finite(unit)
        try:
            with self.clock.stage(stages.SCORING):
                self._statistics[unit.index].add(sample)
        except DecompositionError as error:
            raise DecompositionError(
                f"layer {unit.index}: {str(error).rstrip('.')}; to leave the layer as it is, put "
                f"{unit.name} into the recipe's ignore."
            ) from error

    def _complete_scores(self) -> None:
        """Score what could not be scored layer by layer."""
        across = self._scorings.across
        if across is None:
            return
        with self.clock.stage(stages.SCORING):
            scores = self._scorings.of_all_layers(self.plan.prunable, self._processes)
        for layer, found in scores.items():
            self._scores[layer] = found | self._scores[layer]
        if self._record is not None:
            self._record.save_networks(across)

    def _prune(self, unit: Unit, score: Tensor) -> None:
        statistics = self._statistics.pop(unit.index)
        report = {"layer": unit.index, "samples": statistics.n_samples}
        report |= self._scorings.report(unit, statistics)
        with self.clock.stage(stages.REPAIR), ticking(f"cutting and repairing layer {unit.index}"):
            self._cuts.cut(unit, score, statistics, report)
