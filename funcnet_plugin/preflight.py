"""What can be refused before a model's weights and the calibration text are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from funcnet_plugin.disk import check_room
from funcnet_plugin.errors import CalibrationError, FuncnetError, RecipeError
from funcnet_plugin.export import check_form
from funcnet_plugin.recipe import Recipe, dump_recipe
from funcnet_plugin.saving import check_generation_file, smallest_size

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
    from funcnet_plugin.hosts.llm_compressor import WidthPruningModifier
    from funcnet_plugin.hosts.whole_model import WholeModelModifier
    from funcnet_plugin.inspect import load_config, model_without_weights
    from funcnet_plugin.weights import check_weights

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


def check_ids(
    windows: Sequence[Sequence[int]], model: PreTrainedModel, tokens: int | None = None
) -> None:
    """The tokenizer must be the model's.

    Args:
        tokens: that the tokenizer knows; more than the model has are warned of.

    Raises:
        CalibrationError: it gave a token that the model does not have.
    """
    highest, known = max(map(max, windows)), model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise CalibrationError(
            f"the tokenizer gives token {highest} and the model has {known} tokens; put the "
            "model's own tokenizer beside it."
        )
    if tokens is not None and tokens > known:
        logger.warning(
            f"the tokenizer has {tokens} tokens and the model {known}: text with one of the others "
            "would end in an error; put the model's own tokenizer beside it, or resize its "
            "embeddings."
        )


def _modifiers(plan: Recipe) -> list[Modifier]:
    """Let llm-compressor build the modifiers now: a wrong field ends here, not after loading.

    Raises:
        RecipeError: a field is wrong, or there is no such modifier.
    """
    from llmcompressor.recipe import Recipe
    from pydantic import ValidationError

    from funcnet_plugin.hosts.fields import one_sentence

    try:
        return Recipe.create_instance(dump_recipe(plan)).modifiers
    except FuncnetError:
        raise
    except ValidationError as error:  # of a modifier that is not ours
        raise RecipeError(one_sentence(error)) from error
    except ValueError as error:
        raise RecipeError(f"the recipe cannot be used: {' '.join(str(error).split())}") from error
