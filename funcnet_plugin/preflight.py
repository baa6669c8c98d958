"""Refuses what can be refused before a model's weights and the calibration text are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.checkpoints.saving import check_generation_file
from funcnet_plugin.disk import check_room
from funcnet_plugin.errors import FuncnetError, RecipeError
from funcnet_plugin.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel

    from funcnet_plugin.measure.free_memory import FreeMemory
    from funcnet_plugin.measure.workload import Workload
    from funcnet_plugin.run import Run
    from funcnet_plugin.run.stages import Stage


def check_request(
    model: str | Path, plan: Recipe, workload: Workload, export: str | None, out: Path
) -> PreTrainedModel:
    """Refuse now what a run would refuse once the weights are loaded.

    Args:
        model: checkpoint directory or hub name.
        plan: the whole recipe.
        workload: the calibration text, as far as the model takes its length.
        export, out: see `prune.prune`.

    Returns:
        the model on the meta device.

    Raises:
        FuncnetError: the checkpoint is damaged or not known, a modifier cannot do what it says, or
            the disk has no room for the result.
    """
    from funcnet_plugin.adapters import bind
    from funcnet_plugin.checkpoints.loading import load_config, max_length, model_without_weights
    from funcnet_plugin.checkpoints.weights import check_weights
    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier
    from funcnet_plugin.hosts.llmcompressor.size import smallest_size
    from funcnet_plugin.hosts.llmcompressor.whole_model import WholeModelModifier

    modifiers = _modifiers(plan)
    shapes = model_without_weights(model)
    bind(shapes, try_mlps=False)  # those that cut neurons try them
    for i, modifier in enumerate(modifiers):
        if isinstance(modifier, WidthPruningModifier):
            run = modifier.plan(shapes, workload.samples, modifiers[i + 1 :])
            length = min(workload.length, max_length(shapes) or workload.length)
            _check_memory(run, shapes, replace(workload, length=length))
        elif isinstance(modifier, WholeModelModifier):
            modifier.plan(shapes)
    if export:
        check_form(export, shapes, modifiers)
    for i, modifier in enumerate(modifiers):
        if isinstance(modifier, WidthPruningModifier):
            modifier.check_neighbours(modifiers[:i], modifiers[i + 1 :], shapes)
    check_room(out, smallest_size(shapes, modifiers))
    check_generation_file(model)
    check_weights(model, load_config(model))
    return shapes


def needed_memory(
    model: str | Path,
    plan: Recipe,
    workload: Workload,
    *,
    gpu: bool,
    free: FreeMemory | None = None,
) -> tuple[list[Stage], list[str]]:
    """Compute what each stage of a run takes, without its weights.

    Args:
        model: checkpoint directory or hub name.
        plan: the whole recipe.
        workload: the calibration text.
        gpu, free: see `memory`.

    Returns:
        the stages, and the modifiers whose memory is not ours to know.

    Raises:
        FuncnetError: the recipe does not fit the model, or cuts no neurons.
    """
    from funcnet_plugin.checkpoints.loading import model_without_weights
    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier
    from funcnet_plugin.run.memory import memory

    modifiers = _modifiers(plan)
    shapes = model_without_weights(model)
    ours = [modifier for modifier in modifiers if isinstance(modifier, WidthPruningModifier)]
    if not ours:
        raise RecipeError(
            "what a recipe needs is known of WidthPruningModifier and FunctionalNetworkModifier, "
            f"and this one has {', '.join(type(m).__name__ for m in modifiers)}."
        )
    behind = modifiers[modifiers.index(ours[0]) + 1 :]
    run = ours[0].plan(shapes, workload.samples, behind)
    others = [type(modifier).__name__ for modifier in modifiers if modifier is not ours[0]]
    return memory(run.request, run.plan, shapes, workload, gpu=gpu, free=free), others


def _check_memory(run: Run, shapes: PreTrainedModel, workload: Workload) -> None:
    """Refuse what clearly does not fit; of what may not, the run itself warns.

    Raises:
        RoomError: see `check_fits`.
    """
    from funcnet_plugin.measure.free_memory import free_memory
    from funcnet_plugin.run.fitting import check_fits

    check_fits(run.request, run.plan, shapes, workload, free_memory())


def check_form(form: str, model: PreTrainedModel, modifiers: Sequence[Modifier]) -> None:
    """Refuse to export what a recipe will not leave in a shape for it, before the recipe runs.

    Args:
        form: see `export.FORMATS`.
        model: before pruning; may be on the meta device.
        modifiers: of the recipe, those of ours planned.

    Raises:
        FuncnetError: the form is for other models.
    """
    from llmcompressor.modifiers.quantization import QuantizationMixin

    from funcnet_plugin.export.gguf import architecture_of
    from funcnet_plugin.export.nemotron_nas import GRID
    from funcnet_plugin.export.nemotron_nas import check_architecture as check_nemotron_nas
    from funcnet_plugin.hosts.llmcompressor.modifiers import (
        HiddenSlicingModifier,
        WidthPruningModifier,
    )
    from funcnet_plugin.models.chatglm.modeling import ChatGLMForCausalLM

    for modifier in modifiers:
        if isinstance(modifier, QuantizationMixin):
            raise FuncnetError(
                f"{form} takes no quantized model, and the recipe has a {type(modifier).__name__}; "
                "leave one of the two out."
            )
    if form == "glm" and not isinstance(model, ChatGLMForCausalLM):
        raise FuncnetError(
            f"glm is for ChatGLM, and this is a {type(model).__name__}; leave --export out."
        )
    if form.partition(":")[0] in ("gguf", "nemotron-nas") and any(
        isinstance(m, HiddenSlicingModifier) for m in modifiers
    ):
        raise FuncnetError(
            f"{form} is for models of stock transformers, and HiddenSlicingModifier leaves another "
            "architecture; leave --export out."
        )
    one_width = [m.leaves_one_width() for m in modifiers if isinstance(m, WidthPruningModifier)]
    if form.partition(":")[0] == "gguf":
        architecture_of(model, "the model", irregular=not all(one_width))
    if form == "nemotron-nas":
        check_nemotron_nas(model, "the model")
        width = [m for m in modifiers if isinstance(m, WidthPruningModifier)]
        off = [m.align for m in width if m.align % GRID]
        if any(m.request.repair.adds_bias for m in width):
            raise FuncnetError(
                "nemotron-nas holds no biases, and the repair of the recipe adds some; take "
                "repair: least_squares."
            )
        if off:
            raise FuncnetError(
                f"nemotron-nas holds widths in multiples of {GRID}, and the recipe keeps multiples "
                f"of {off[0]}; set align: {GRID}."
            )
    if form == "remote-code" and any(one_width):
        raise FuncnetError(
            "the recipe leaves one width in all layers, which stock transformers loads as it is; "
            "leave --export remote-code out."
        )


def _modifiers(plan: Recipe) -> list[Modifier]:
    """Let llm-compressor build the modifiers now: a wrong field ends here, not after loading.

    Raises:
        RecipeError: a field is wrong, or there is no such modifier.
    """
    from llmcompressor.recipe import Recipe
    from pydantic import ValidationError

    from funcnet_plugin.plugins import one_sentence

    try:
        return Recipe.create_instance(dump_recipe(plan)).modifiers
    except FuncnetError:
        raise
    except ValidationError as error:  # of a modifier that is not ours
        raise RecipeError(one_sentence(error, error.title)) from error
    except ValueError as error:
        raise RecipeError(f"the recipe cannot be used: {' '.join(str(error).split())}") from error
