"""Refuses what can be refused before a model's weights and the calibration text are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.checkpoints.saving import check_generation_file
from funcnet_plugin.disk import check_room
from funcnet_plugin.errors import FuncnetError, RecipeError
from funcnet_plugin.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel


def check_request(
    model: str | Path, plan: Recipe, samples: int, export: str | None, out: Path
) -> PreTrainedModel:
    """Refuse now what a run would refuse once the weights are loaded.

    Args:
        model: checkpoint directory or hub name.
        plan: the whole recipe.
        samples: of calibration.
        export, out: see `prune.prune`.

    Returns:
        the model on the meta device.

    Raises:
        FuncnetError: the checkpoint is damaged or not known, a modifier cannot do what it says, or
            the disk has no room for the result.
    """
    from funcnet_plugin.adapters import bind
    from funcnet_plugin.checkpoints.loading import load_config, model_without_weights
    from funcnet_plugin.checkpoints.weights import check_weights
    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier
    from funcnet_plugin.hosts.llmcompressor.size import smallest_size
    from funcnet_plugin.hosts.llmcompressor.whole_model import WholeModelModifier

    modifiers = _modifiers(plan)
    shapes = model_without_weights(model)
    bind(shapes, try_mlps=False)  # those that cut neurons try them
    for modifier in modifiers:
        if isinstance(modifier, WidthPruningModifier):
            modifier.plan(shapes, samples)
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

    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier
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
    one_width = (m.leaves_one_width() for m in modifiers if isinstance(m, WidthPruningModifier))
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
