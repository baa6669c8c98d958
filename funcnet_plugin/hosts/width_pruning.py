"""The modifier that every scorer shares. Lifecycle only; the work is in `pruning`.

| event | what happens |
|---|---|
| initialize | everything that can be refused is refused; the budget is planned |
| calibration start | hooks on the prunable layers |
| sequential epoch end | the layer just calibrated is scored, cut and repaired; the next one then |
| | sees the pruned model, because the pipeline sends the data through the cut layer |
| calibration end | `allocation: threshold` or networks across layers: all layers are cut at once |
| finalize | config and `save_pretrained` learn the new widths |
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from llmcompressor.core import Event, State, active_session
from llmcompressor.modifiers import Modifier
from llmcompressor.utils import eval_context
from loguru import logger
from pydantic import Field, PrivateAttr
from torch import Tensor

from funcnet_plugin import checkpoint
from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.errors import CalibrationError, DecompositionError, RecipeError
from funcnet_plugin.hosts import checks
from funcnet_plugin.hosts.borrowed import GivesBack
from funcnet_plugin.hosts.calibration_checks import check_batches
from funcnet_plugin.hosts.description import describe_widths, pruning_block
from funcnet_plugin.hosts.evidence import Evidence
from funcnet_plugin.hosts.fields import PlainErrors
from funcnet_plugin.hosts.given_model import check_model
from funcnet_plugin.hosts.layer_cuts import LayerCuts
from funcnet_plugin.hosts.neighbours import check_after, check_before
from funcnet_plugin.hosts.own_calibration import own_windows
from funcnet_plugin.hosts.recorder import MLPRecorder
from funcnet_plugin.hosts.residual_repair import ResidualRepair, plan_repair
from funcnet_plugin.hosts.resume import Record
from funcnet_plugin.hosts.sample_order import arrange
from funcnet_plugin.hosts.tracing import trust_no_trace
from funcnet_plugin.hosts.width_plan import WidthPlan
from funcnet_plugin.pruning.collect import LayerStatistics, MLPSample
from funcnet_plugin.pruning.compensation import BEHIND_PRUNED_LAYERS, Moments
from funcnet_plugin.pruning.finite import check_finite_weights
from funcnet_plugin.pruning.global_networks import GlobalNetworks
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.score_checks import checked_scores
from funcnet_plugin.pruning.scorers import Scorer, union_of_ranks

Scores = dict[str, Tensor]  # name -> (width,), see `pruning.scorers`


class WidthPruningModifier(PlainErrors, GivesBack, Modifier):
    """Cuts the least important MLP neurons of every layer and repairs what they carried.

    The ratio counts parameters, and kept widths are multiples of `align`; what was reached is
    computed exactly, logged, and written into config.json (block `functional_network`). Layers are
    measured one after another on the already pruned model (llm-compressor's sequential pipeline).

    :param pruning_ratio: share of the parameters to remove, in (0, 1).
    :param ratio_scope: what the ratio counts: `model` (all parameters) or `mlp`.
    :param scorer: `effect` (variance of the activation times squared norm of the down column),
        `loss_effect` and `surgeon` (its effect on the loss to second order, alone or after the
        others were updated), `flap`, `wanda_sp`, `taylor`, `obs`, `magnitude` (weights only),
        `random` (the control), or one that a plugin brings.
    :param union_with: a second scorer: a neuron goes only if neither needs it (the better of its
        two ranks).
    :param token_share: how often any token of the vocabulary may come where the model is used, as a
        share of the tokens, 0.003 for instance: scorers that look at activations see the first
        layer's neurons, which answer to single tokens, as if each also met its strongest token so
        often. 0: only what the calibration text shows.
    :param fisher_labels: the next tokens at which `loss_effect` and `surgeon` take the loss's
        curvature: those of the `text` (the empirical Fisher information), or of the `model`, drawn
        from its own predictions (the true one).
    :param own_text: share of the calibration that the model writes itself, in [0, 1). Scorers of
        activations and the repair see that text beside the calibration data; gradients and networks
        are of the calibration data alone. It is measured on the dense model, and so are all layers
        then, before any is cut.
    :param allocation: `uniform`, the same width in every layer, decided layer by layer; or
        `threshold`, one cut over all layers, decided when all are measured (on the dense model).
    :param align: kept widths are multiples of this; 128 suits quantization groups and GPU kernels.
    :param skip_first: layers left whole at the beginning.
    :param skip_last: layers left whole at the end.
    :param ignore: MLPs left whole, by module path (`model.layers.3.mlp`) or `re:` pattern.
    :param compensation: `none`, `bias` (the mean of what was cut; only where the architecture has
        a bias there), `least_squares`, or `residual_least_squares`, which also makes up for what
        the cut of earlier layers changed in the residual stream. That compares with the dense
        model, so all layers are measured before any is cut, and it takes four passes more over the
        calibration text; hidden states of all of it wait in memory, twice.
        `reconstruction` goes on from there and fits gate, up and down projection together, by
        gradient steps in one MLP after another; the whole model is never trained.
    :param reconstruction_epochs: how often `reconstruction` goes over the text it reads.
    :param continuations: windows that the model writes for every calibration sample, going on from
        16 of its tokens: more text of the same kind, which the repair behind pruned layers reads
        as it reads the samples. For little calibration text, which `reconstruction` would learn by
        heart. Neurons are not chosen on it.
    :param ridge: regularisation of least squares, relative to the mean second moment; or `auto`,
        chosen for each layer on every eighth calibration sample, which that choice does not fit.
    :param resume_dir: a directory for what is finished; a run that finds its own there goes on
        after the last finished layer, with the same result. Where all layers are measured before
        the cut, a run with another ratio measures nothing again. Empty: nothing is kept.
    :param seed: decides random starts, random scores and the order of shuffled samples.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            WidthPruningModifier:
              pruning_ratio: 0.2
              scorer: effect
    """

    requires_calibration_data: bool = True

    pruning_ratio: float
    ratio_scope: Literal["model", "mlp"] = "model"
    scorer: str = "effect"
    union_with: str = ""
    token_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    fisher_labels: Literal["text", "model"] = "text"
    own_text: float = Field(default=0.0, ge=0.0, lt=1.0)
    allocation: Literal["uniform", "threshold"] = "uniform"
    align: int = Field(default=128, ge=1)
    skip_first: int = Field(default=0, ge=0)
    skip_last: int = Field(default=0, ge=0)
    ignore: list[str] = Field(default_factory=list)
    compensation: Literal[
        "none", "bias", "least_squares", "residual_least_squares", "reconstruction"
    ] = "least_squares"
    reconstruction_epochs: int = Field(default=5, ge=1)
    continuations: int = Field(default=0, ge=0)
    ridge: Annotated[float, Field(gt=0.0)] | Literal["auto"] = 0.02
    resume_dir: str = ""
    seed: int = Field(default=0, ge=0)

    _plan: WidthPlan = PrivateAttr()
    _reached: float = PrivateAttr()
    _statistics: dict[int, LayerStatistics] = PrivateAttr(default_factory=dict)
    _scores: dict[int, Scores] = PrivateAttr(default_factory=dict)  # waiting for one cut
    _cuts: LayerCuts = PrivateAttr()
    _scorers: list[Scorer] = PrivateAttr(default_factory=list)
    _evidence: Evidence = PrivateAttr()
    _processes: Processes | None = PrivateAttr(default=None)  # None: one process
    _record: Record | None = PrivateAttr(default=None)
    _residual: ResidualRepair | None = PrivateAttr(default=None)

    def waits_for_all_layers(self) -> bool:
        """Whether all layers are measured, on the dense model, before any is cut."""
        behind = self.compensation in BEHIND_PRUNED_LAYERS
        return self.allocation == "threshold" or behind or self.own_text > 0.0

    def plan(self, model: torch.nn.Module, samples: int | None) -> None:
        """Plan the run, and refuse what can be known to fail from the model's shapes.

        Args:
            model: before pruning; may be on the meta device.
            samples: of calibration; None where that is not known.

        Raises:
            FuncnetError: one sentence on what cannot be done.
        """
        self._scorers = checks.find_scorers(
            self._scorer_names(), self.token_share, self.fisher_labels
        )
        checks.check_own_text(self.own_text, self._needs_moments())
        self._plan = WidthPlan(
            model,
            ratio=self.pruning_ratio,
            scope=self.ratio_scope,
            align=self.align,
            skip_first=self.skip_first,
            skip_last=self.skip_last,
            ignore=self.ignore,
            one_width=self.allocation == "uniform",
        )
        if self.compensation == "bias":
            checks.check_bias(self._plan.layout.adapter, self._plan.prunable)
        checks.check_ridge(self.ridge, self.compensation)
        self._check_layers(samples)
        if self.allocation == "uniform":
            self._reached = self._plan.decide_uniform()

    def check_neighbours(
        self, before: Sequence[Modifier], behind: Sequence[Modifier], model: torch.nn.Module
    ) -> None:
        """Refuse a recipe whose other modifiers do not go with the planned cut.

        Args:
            before, behind: the recipe's modifiers on both sides of this one.
            model: as in `plan`.

        Raises:
            RecipeError: one changes neurons before, or cannot work on the widths to come.
        """
        blocks = self._plan.prunable
        check_before(before, blocks, model, measured_ahead=self._measures_ahead())
        check_after(behind, blocks, model, self._plan.possible_widths)

    def leaves_one_width(self) -> bool:
        """Whether all layers of the planned run will have one width."""
        return self.allocation == "uniform" and len(set(self._plan.budget.uniform())) == 1

    # -- lifecycle ---------------------------------------------------------------------------

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        model = state.model
        trust_no_trace()
        check_model(self, model)
        # the state holds a copy of the loader; the one that will be read comes as an argument
        calibration = kwargs.get("calib_data", state.data.calib)
        self.plan(model, checks.count_samples(calibration))
        self.check_neighbours(*checks.neighbours(self), model)
        plan = self._plan
        self._processes = arrange(calibration, self._samples_per_group(), self.seed)
        self._check_run(check_batches(calibration, model))
        if self._processes is not None and self.resume_dir:
            raise RecipeError("resume_dir is for runs of one process; leave it out.")
        if self.allocation == "uniform":
            logger.info(
                f"widths will be {plan.kept}: {self._reached:.4f} of the {self.ratio_scope} "
                f"removed (asked: {self.pruning_ratio})"
            )
        check_finite_weights(model)
        todo = plan.prunable
        if self.resume_dir:
            self._record = Record(self, model, calibration)
            todo = [block for block in todo if not self._record.finished(block)]
        # where all layers wait, what is kept of them is what was measured
        record = None if self.waits_for_all_layers() else self._record
        self._cuts = LayerCuts(plan, self.compensation, self.ridge, self._processes, record)
        with eval_context(model):  # the pipeline sees to that in its own passes only
            self._look_at_the_whole(model, calibration, todo)
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        if len(active_session().lifecycle.recipe.modifiers) > 1:
            raise RecipeError(
                "this pipeline calibrates all modifiers of the recipe at once, but what follows "
                "pruning must be calibrated on the pruned model; use oneshot's default, "
                "pipeline='independent'."
            )
        for block in self._plan.prunable:
            if self._cuts.replay(block):
                continue
            self._statistics[block.index] = self._new_statistics(block)
            if self._restore(block):
                continue
            MLPRecorder(block, self.register_hook, partial(self._add_sample, block))

    @torch.no_grad()
    def on_sequential_epoch_end(
        self, state: State, event: Event, modules: list[torch.nn.Module], **kwargs: Any
    ) -> None:
        present = set(modules)
        for block in self._plan.prunable:
            waiting = block.index in self._statistics and block.index not in self._scores
            if waiting and set(block.projections) <= present:
                measured = self._statistics[block.index]
                if measured.n_samples == 0:
                    raise CalibrationError(
                        f"no calibration sample reached layer {block.index}; give data to oneshot "
                        "and use its default pipeline."
                    )
                if self._processes is not None:
                    measured.merge(self._processes)
                measured.check_finite(block)
                scores = checked_scores(block, self._score(block, measured))
                if self.waits_for_all_layers():
                    self._scores[block.index] = scores
                    measured.wait()
                    if self._record is not None:
                        self._record.save_measured(block, measured, scores, self._across_layers())
                else:
                    self._prune(block, self._combine([scores])[0])

    @torch.no_grad()
    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        self.remove_hooks()
        blocks = self._plan.prunable
        if self.waits_for_all_layers() and len(self._scores) == len(blocks):
            self._complete_scores()
            layers = [self._scores[block.index] for block in blocks]
            if self._plan.kept is None:
                combined = self._combine(layers)
                self._plan.decide_by_threshold(combined)
            else:
                combined = [self._combine([layer])[0] for layer in layers]
            cuts = {
                block.index: partial(self._prune, block, score)
                for block, score in zip(blocks, combined, strict=True)
            }
            if self._residual is not None:
                found = self._residual.prune(state.model, self._plan.layout.blocks, cuts)
                for index, report in found.items():
                    self._cuts.reports[index].update(report)
            else:
                for cut in cuts.values():
                    cut()
        self._scores.clear()

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        self.remove_hooks()
        missing = [b.index for b in self._plan.prunable if b.index not in self._cuts.reports]
        if missing:  # also when a failed run is cleaned up: the config must not change then
            raise CalibrationError(
                f"layers {missing} were not calibrated, so the model is not pruned and its config "
                "is left as it was; use oneshot's default pipeline and sequential_targets."
            )
        layout, block = self._plan.layout, self._describe(state.model)
        biased = self.compensation == "bias"
        describe_widths(state.model, layout, block, self._cuts.kept, biased=biased)
        logger.info(
            f"pruned {block['parameters_before']:,} -> {block['parameters_after']:,} parameters: "
            f"{block['pruning_ratio_reached']:.4f} of the {self.ratio_scope} "
            f"(asked: {self.pruning_ratio}); widths {layout.widths}"
        )
        return True

    def _add_sample(self, block: MLPBlock, sample: MLPSample) -> None:
        try:
            sample.check_finite(block)
            self._statistics[block.index].add(sample)
        except DecompositionError as error:
            self.remove_hooks()
            raise DecompositionError(
                f"layer {block.index}: {str(error).rstrip('.')}; to leave the layer as it is, put "
                f"{block.name} into the recipe's ignore."
            ) from error
        except BaseException:
            self.remove_hooks()  # a model that stays in memory must not keep recording
            raise

    def _look_at_the_whole(
        self, model: torch.nn.Module, calibration: Any, todo: Sequence[MLPBlock]
    ) -> None:
        """What is measured in passes through the whole dense model, before the pipeline's."""
        residual = self.compensation in BEHIND_PRUNED_LAYERS
        if self.continuations and not residual:  # not refused: a recipe's repair may be overridden
            logger.warning(
                f"continuations are text for compensation: {' or '.join(BEHIND_PRUNED_LAYERS)}, "
                f"and the recipe has {self.compensation}, so the model writes none."
            )
        own = None
        if self.own_text and (todo or residual):
            own = own_windows(model, calibration, self.seed, self._processes, self._record)
        if residual:
            self._residual = plan_repair(
                model, self._plan.layout.blocks, calibration, own,
                own_text=self.own_text, continuations=self.continuations,
                ridge=self.ridge, seed=self.seed, processes=self._processes, record=self._record,
                epochs=self.reconstruction_epochs if self.compensation == "reconstruction" else 0,
            )  # fmt: skip
        self._evidence = Evidence(
            model, calibration, todo, self._scorers, self._processes,
            moments=self._needs_moments(), fisher_labels=self.fisher_labels, own_text=self.own_text,
            own_windows=own, token_share=self.token_share, seed=self.seed,
        )  # fmt: skip

    # -- what a scorer decides ---------------------------------------------------------------
    def _new_statistics(
        self, block: MLPBlock, channels: Sequence[str] = (), networks: Any = None
    ) -> LayerStatistics:
        auto = self.compensation == "least_squares" and self.ridge == "auto"
        held_out = Moments(block.width) if auto else None
        moments = self._evidence.new_moments(block)
        return LayerStatistics(list(channels), moments, networks, held_out)

    def _score(self, block: MLPBlock, statistics: LayerStatistics) -> Scores:
        """The scores of one layer by name. Several names are combined by `_combine`."""
        return self._evidence.scores(block, statistics.moments)

    def _across_layers(self) -> GlobalNetworks | None:
        """What the layers share while they are measured."""
        return None

    def _complete_scores(self) -> None:
        """All layers were measured: score what could not be scored layer by layer."""

    def _combine(self, layers: list[Scores]) -> list[Tensor]:
        """One score per layer; ranks are taken over the layers given."""
        names = list(layers[0])
        if len(names) == 1:
            return [layer[names[0]] for layer in layers]
        return union_of_ranks([[layer[n] for layer in layers] for n in names])

    # -- steps -------------------------------------------------------------------------------
    def _scorer_names(self) -> list[str]:
        return [self.scorer, *([self.union_with] if self.union_with else [])]

    def _needs_moments(self) -> bool:
        return self.compensation != "none" or any(s.needs_moments for s in self._scorers)

    def _measures_ahead(self) -> bool:
        """Whether anything is measured on the model as it is before any modifier calibrates."""
        of_gradients = any(s.needs_gradients or s.needs_output_gradients for s in self._scorers)
        behind = self.compensation in BEHIND_PRUNED_LAYERS
        return of_gradients or behind or self.own_text > 0.0 or self.token_share > 0.0

    def _samples_per_group(self) -> int:
        """Samples that must stay in one process."""
        return 1

    def _check_layers(self, samples: int | None) -> None:
        """Refuse what the layers that may be cut, or so many samples, do not allow."""

    def _check_run(self, lengths: Sequence[int]) -> None:
        """Refuse what only weights and samples show: tokens of each, in the order of the run."""

    def _prune(self, block: MLPBlock, score: Tensor) -> None:
        statistics = self._statistics.pop(block.index)
        self._cuts.cut(block, score, statistics, self._report(block, statistics))

    def _restore(self, block: MLPBlock) -> bool:
        """Take over what the interrupted run measured of a layer."""
        if self._record is None or not self.waits_for_all_layers():
            return False
        statistics = self._statistics[block.index]
        scores = self._record.restore(block, statistics, self._across_layers())
        if scores is not None:
            self._scores[block.index] = scores
        return scores is not None

    def _report(self, block: MLPBlock, statistics: LayerStatistics) -> dict[str, Any]:
        """What was measured in one layer, as saved in config.json: plain numbers only."""
        report = {"layer": block.index, "samples": statistics.n_samples}
        return report if statistics.held_out is None else report | {"ridge": None}  # until the cut

    def _describe(self, model: torch.nn.Module) -> dict[str, Any]:
        """The `functional_network` block of config.json."""
        plan, reports = self._plan, self._cuts.reports
        return pruning_block(
            self,
            model,
            plan.parameters,
            plan.parameters_now(),
            plan.budget.scope_parameters,
            original_widths=plan.original,
            kept_widths=plan.layout.widths,
            measured=checkpoint.by_figure([reports[i] for i in sorted(reports)]),
        )
