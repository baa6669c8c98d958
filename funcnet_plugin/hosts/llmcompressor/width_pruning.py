"""Prunes MLPs as a modifier: translates events of llm-compressor into calls of `run`.

| event | what happens |
|---|---|
| initialize | everything that can be refused is refused; the whole dense model is measured; heads |
| | are cut, if any |
| calibration start | the units that are still to be measured are hooked |
| sequential epoch end | the layer just calibrated is scored, cut and repaired; the next one then |
| | sees the pruned model, because the pipeline sends the data through the cut layer |
| calibration end | where the cut waited for all layers, they are cut at once |
| finalize | config and `save_pretrained` learn the new widths |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from llmcompressor.core import Event, State, active_session
from llmcompressor.modifiers import Modifier
from llmcompressor.utils import eval_context
from llmcompressor.utils.dev import get_main_device
from loguru import logger
from pydantic import Field, PrivateAttr, field_validator

from funcnet_plugin import __version__
from funcnet_plugin.adapters import Unit
from funcnet_plugin.checkpoints import block as checkpoint
from funcnet_plugin.cut import alignment
from funcnet_plugin.cut.plan import AUTO
from funcnet_plugin.errors import CalibrationError, RecipeError
from funcnet_plugin.hosts.llmcompressor import checks
from funcnet_plugin.hosts.llmcompressor.batching import read_in_our_batches
from funcnet_plugin.hosts.llmcompressor.borrowed import GivesBack
from funcnet_plugin.hosts.llmcompressor.calibrating import AsItCame
from funcnet_plugin.hosts.llmcompressor.call import running
from funcnet_plugin.hosts.llmcompressor.description import (
    describe_widths,
    head_figures,
    pruning_block,
    settings_of,
)
from funcnet_plugin.hosts.llmcompressor.fields import Place, PlainErrors
from funcnet_plugin.hosts.llmcompressor.given_model import check_model
from funcnet_plugin.hosts.llmcompressor.neighbours import (
    check_after,
    check_before,
    check_inputs,
    divisors,
)
from funcnet_plugin.hosts.llmcompressor.old_shape import refuse_old_shape
from funcnet_plugin.hosts.llmcompressor.requantize import renew_quantization
from funcnet_plugin.hosts.llmcompressor.summary import ended
from funcnet_plugin.hosts.llmcompressor.tracing import trust_no_trace
from funcnet_plugin.measure.joining import Batch, joined
from funcnet_plugin.measure.padding import takes_padding
from funcnet_plugin.measure.room import room_for
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.run import Request, Run
from funcnet_plugin.run.announce import announce
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.screen import span
from funcnet_plugin.text.batches import SingleSamples, read_calibration
from funcnet_plugin.text.cache import TextCache
from funcnet_plugin.text.order import arrange

Named = str | dict[str, Any]  # a part: its name, or a mapping with `name` and its parameters


class WidthPruningModifier(PlainErrors, GivesBack, Modifier):
    """Cuts the least important MLP neurons of every layer and repairs what they carried.

    Heads may go beside them (`heads_ratio`).

    The ratio counts parameters, and kept widths are multiples of `align`; what was reached is
    computed exactly, logged, and written into config.json (block `functional_network`). Layers are
    measured one after another on the already pruned model (llm-compressor's sequential pipeline).

    A part is given by its name, or by a mapping with `name` and its parameters.

    :param pruning_ratio: share of the parameters to remove, in (0, 1).
    :param ratio_scope: what the ratio counts: `model` (all parameters) or `mlp`.
    :param heads_ratio: share of the attention heads that go, in [0, 1); neurons make up the rest of
        `pruning_ratio`. Heads go in groups that share keys and values, before any layer is
        calibrated: those whose removal costs the attention's output least, as many in every
        layer, also where `skip_first`, `skip_last` and `ignore` leave the MLP whole. The nearest
        number that the architecture can have is taken. `auto`: as many as cost the layers'
        outputs less than neurons would.
    :param scorer: says which neurons matter: `networks`, `effect`, `loss_effect`, `surgeon`,
        `flap`, `wanda_sp`, `taylor`, `obs`, `magnitude`, `random`, `atlas` (networks that were
        found before), or one that another package brings. Of a list a neuron goes only if no scorer
        needs it (the better of its ranks).
    :param repair: makes up for what was cut: `none`, `bias`, `least_squares`, `distillation`, or
        one that another package brings.
    :param own_text: share of the calibration that the model writes itself, in [0, 1). Scorers of
        activations and the repair see that text beside the calibration data; gradients and networks
        are of the calibration data alone. It is measured on the dense model, and so are all layers
        then, before any is cut.
    :param allocation: `uniform`, the same width in every layer, decided layer by layer; or
        `threshold`, one cut over all layers, decided when all are measured (on the dense model).
    :param align: kept widths are multiples of this number; 128 suits quantization groups and GPU
        kernels. `auto` takes what is known to be fast on the device that prunes, and what the
        quantization that follows in the recipe divides; a widths.json that `funcnet bench --widths`
        wrote, what was measured.
    :param skip_first: layers left whole at the beginning.
    :param skip_last: layers left whole at the end.
    :param ignore: MLPs left whole, by module path (`model.layers.3.mlp`) or `re:` pattern.
    :param resume_dir: a directory for what is finished; a run that finds its own there goes on
        after the last finished layer, with the same result. Where all layers are measured before
        the cut, a run with another ratio measures nothing again. Empty: nothing is kept.
    :param text_cache: a directory for what the model writes (own text and continuations); a later
        run of any recipe with the same model, seed and calibration text takes it from there. Empty:
        nothing is kept.
    :param max_memory: for one layer's signals of one group and the copies that reducing them needs,
        like `2GB` or `500MB`; signals that do not fit are merged and truncated as they come. Empty:
        no limit.
    :param atlas: a directory for the functional networks that the scorer `networks` finds, with
        what moves each (`funcnet atlas`); a later run with the same model, data and networks reads
        them there, whatever the ratio. All layers' networks are those of the dense model then.
        Empty: nothing is kept.
    :param seed: decides random starts, random scores and the order of shuffled samples.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            WidthPruningModifier:
              pruning_ratio: 0.2
              scorer: surgeon
              repair: {name: distillation, epochs: 1}
    """

    requires_calibration_data: bool = True

    pruning_ratio: float
    ratio_scope: Literal["model", "mlp"] = "model"
    heads_ratio: float | Literal["auto"] = 0.0
    scorer: Named | list[Named] = Field(default="effect", validate_default=True)
    repair: Named = Field(default="least_squares", validate_default=True)
    own_text: float = Field(default=0.0, ge=0.0, lt=1.0)
    allocation: Literal["uniform", "threshold"] = "uniform"
    align: int | str = 128
    skip_first: int = Field(default=0, ge=0)
    skip_last: int = Field(default=0, ge=0)
    ignore: list[str] = Field(default_factory=list)
    resume_dir: Place = ""
    text_cache: Place = ""
    max_memory: str = Field(default="", pattern=r"^([0-9]+(\.[0-9]+)?(MB|GB))?$")
    atlas: Place = ""
    seed: int = Field(default=0, ge=0)

    _run: Run = PrivateAttr()
    _text: Text = PrivateAttr()
    _as_it_came: AsItCame = PrivateAttr()

    if not TYPE_CHECKING:  # a checker takes the fields for the arguments

        def __init__(self, **fields: Any) -> None:
            refuse_old_shape(type(self).__name__, fields)
            super().__init__(**fields)

    @field_validator("scorer", mode="before")
    @classmethod
    def _scorers_in_full(cls, given: Any) -> Any:
        """Write every scorer with all its parameters, as config.json keeps it."""
        if isinstance(given, list | tuple):
            return [SCORERS.make(one).settings() for one in given]
        return SCORERS.make(given).settings()

    @field_validator("repair", mode="before")
    @classmethod
    def _repair_in_full(cls, given: Any) -> Any:
        """Write the repair with all its parameters, as config.json keeps it."""
        return REPAIRS.make(given).settings()

    @field_validator("heads_ratio", mode="before")
    @classmethod
    def _heads_share(cls, given: Any) -> Any:
        """Refuse what is no share."""
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if given == AUTO or (number and 0.0 <= given < 1.0):
            return given
        raise RecipeError(f"heads_ratio={given!r} must be at least 0 and less than 1, or {AUTO}")

    @field_validator("align", mode="before")
    @classmethod
    def _alignment(cls, given: Any) -> Any:
        """Refuse what is no number of neurons, no file and not `auto`."""
        if isinstance(given, str | Path) and str(given):
            return str(given)
        if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
            return given
        raise RecipeError(
            f"align={given!r} must be a whole number from 1 on, {alignment.AUTO}, or the "
            "widths.json of funcnet bench --widths"
        )

    @property
    def request(self) -> Request:
        """Read what the recipe asks for.

        Raises:
            RecipeError: its parts do not go together.
        """
        scorers = self.scorer if isinstance(self.scorer, list) else [self.scorer]
        others = (
            "pruning_ratio", "ratio_scope", "heads_ratio", "own_text", "allocation", "align",
            "skip_first", "skip_last", "max_memory", "atlas", "seed",
        )  # fmt: skip
        return Request(
            scorers=tuple(map(SCORERS.make, scorers)),
            repair=REPAIRS.make(self.repair),
            ignore=tuple(self.ignore),
            **{name: getattr(self, name) for name in others},
        )

    def plan(
        self, model: torch.nn.Module, samples: int | None, behind: Sequence[Modifier] = ()
    ) -> Run:
        """Plan the run, and refuse what can be known to fail from the model's shapes.

        From then on `align` is a number.

        Args:
            model: before pruning; may be on the meta device.
            samples: of calibration; None where that is not known.
            behind: the recipe's modifiers behind this one, which `align: auto` heeds.

        Raises:
            FuncnetError: one sentence on what cannot be done.
        """
        if not isinstance(self.align, int):
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.align = alignment.resolve(self.align, device, divisors(behind, model))
            logger.info(f"kept widths are multiples of {self.align}, on this device ({device})")
        self._run = Run(self.request, model, samples)
        return self._run

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
        plan = self._run.plan
        check_before(before, plan.prunable, model, measured_ahead=self.request.measures_ahead)
        check_after(behind, plan.prunable, model, plan.possible_widths)
        for kept in plan.choices:
            if kept < plan.heads.original:
                inputs = plan.heads.inputs(kept)
                check_inputs(behind, inputs, "cutting heads", "another heads_ratio")

    def leaves_one_width(self) -> bool:
        """Tell whether all layers of the planned run will have one width."""
        return self._run.leaves_one_width

    # -- lifecycle ---------------------------------------------------------------------------

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        model = state.model
        trust_no_trace()
        read_in_our_batches()
        check_model(self, model)
        # the state holds a copy of the loader; the one that will be read comes as an argument
        calibration = kwargs.get("calib_data", state.data.calib)
        before, behind = checks.neighbours(self)
        run = self.plan(model, checks.count_samples(calibration), behind)
        self.check_neighbours(before, behind, model)
        processes = arrange(calibration, run.request.group_size, self.seed)
        self._text = self._read(calibration, model)
        settings = settings_of(self) | {"version": __version__}
        resume = (self.resume_dir, settings) if self.resume_dir else None
        cache = TextCache(Path(self.text_cache), model) if self.text_cache else None
        self._when_the_run_ends(run.close)
        with eval_context(model):  # the pipeline sees to that in its own passes only
            announce(run, model, self._text)
            run.begin(
                self._text, processes, resume, after_cut=_renew, cache=cache, decode=_decode()
            )
        return True

    def _read(self, calibration: Any, model: torch.nn.Module) -> Text:
        call = running()
        open_to_us = (
            isinstance(calibration, SingleSamples) if call is None else call.chooses_batches
        )
        text = read_calibration(calibration, model, may_join=open_to_us)
        if not text.may_join or len(set(map(len, text.samples))) == 1:
            return text
        with eval_context(model):
            return replace(text, may_pad=takes_padding(model, self._run.plan.layout.blocks, text))

    def calibration_batches(self, model: torch.nn.Module) -> list[Batch] | None:
        """Give what the pipeline reads for this modifier; None for the loader as it is."""
        if not self._text.may_join:
            return None
        units = self._run.plan.layout.blocks
        return joined(self._text, room_for(model, units, torch.device(get_main_device())))

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        if len(active_session().lifecycle.recipe.modifiers) > 1:
            raise RecipeError(
                "this pipeline calibrates all modifiers of the recipe at once, but what follows "
                "pruning must be calibrated on the pruned model; use oneshot's default, "
                "pipeline='independent'."
            )
        self._as_it_came = AsItCame(state.model)
        self._run.record(self._register)

    def on_sequential_epoch_end(
        self, state: State, event: Event, modules: list[torch.nn.Module], **kwargs: Any
    ) -> None:
        self._run.layers_passed(modules)

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        self.remove_hooks()
        with self._as_it_came.again():
            self._run.finish()

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        self.remove_hooks()
        run, model = self._run, state.model
        if run.unfinished:  # also when a failed run is cleaned up: the config must not change then
            raise CalibrationError(
                f"layers {run.unfinished} were not calibrated, so the model is not pruned and its "
                "config is left as it was; use oneshot's default pipeline and sequential_targets."
            )
        layout, block = run.plan.layout, self._describe(model)
        describe_widths(
            model,
            layout,
            block,
            run.kept,
            biased=run.request.repair.adds_bias,
            heads_cut=run.kept_heads is not None,
        )
        ended(block, run.clock)
        logger.info(
            f"pruned {block['parameters_before']:,} -> {block['parameters_after']:,} parameters: "
            f"{block['pruning_ratio_reached']:.4f} of the {self.ratio_scope} "
            f"(asked: {self.pruning_ratio}); widths {span(layout.widths)}"
        )
        return True

    def _register(self, module: torch.nn.Module, hook: Callable, *args: Any, **kwargs: Any) -> Any:
        """Hook a module; when a hook fails, all go: a model that stays must not keep recording."""

        @wraps(hook)
        def guarded(*given: Any, **named: Any) -> Any:
            try:
                return hook(*given, **named)
            except BaseException:
                self.remove_hooks()
                raise

        return self.register_hook(module, guarded, *args, **kwargs)

    def _describe(self, model: torch.nn.Module) -> Mapping[str, Any]:
        """Make the `functional_network` block of config.json."""
        plan = self._run.plan
        return pruning_block(
            self,
            model,
            plan.parameters,
            plan.parameters_now(),
            plan.budget.scope_parameters,
            original_widths=plan.original,
            kept_widths=plan.layout.widths,
            **head_figures(plan.heads, self._run.kept_heads),
            measured=checkpoint.by_figure(self._run.reports) | self._run.tuned,
        )


def _decode() -> Callable[[int], str]:
    """Find what gives the text of a token; its number where the run has no tokenizer."""
    tokenizer = getattr(running(), "tokenizer", None)
    if not hasattr(tokenizer, "decode"):
        return str
    return lambda token: tokenizer.decode([token])


def _renew(unit: Unit) -> None:
    """Keep a quantization that follows in the recipe aware of the new shapes."""
    for module in unit.projections:
        renew_quantization(module)
