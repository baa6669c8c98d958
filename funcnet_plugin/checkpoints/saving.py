"""Tries what can fail when a model is saved, before the hours of work that come first.

Transformers checks more when it saves than when it loads: a generation config that it loads with a
warning it refuses to write. Such a one is written as it came in.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from funcnet_plugin.disk import refuse_full_disk
from funcnet_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

_GENERATION = "generation_config.json"


def rehearse(model: PreTrainedModel) -> None:
    """Write everything but the weights into a directory that vanishes, and read it again.

    Raises:
        CheckpointError: config or generation config cannot be written, or not be read again.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = _movable(model.config)
        attempt("its config", config.save_pretrained, folder, holder=config)
        attempt("its config, which was written,", type(config).from_pretrained, folder)
    if getattr(model, "generation_config", None) is None:
        return
    habits = _with_misplaced(model.generation_config, model.config)
    attempt("its generation config", _written_and_read, habits, holder=habits)
    problem = _problem(habits)
    if problem is not None:
        logger.warning(
            f"transformers would not save this generation config, so {_GENERATION} is written as "
            f"it came in: {problem}"
        )


def check_generation_file(source: str | Path) -> None:
    """Refuse a generation config that cannot even be loaded: it stops the whole load.

    Raises:
        CheckpointError: a checkpoint directory has such a one.
    """
    from transformers import GenerationConfig

    if not (Path(source) / _GENERATION).is_file():
        return
    try:
        GenerationConfig.from_pretrained(str(source))
    except Exception as error:  # of json, of transformers' checks, of a wrong type
        raise CheckpointError(
            f"{Path(source) / _GENERATION} cannot be used ({_plain(error)}); mend or delete it."
        ) from error


def check_tokenizer(tokenizer: Any) -> None:
    """Write the tokenizer into a directory that vanishes.

    Raises:
        CheckpointError: it cannot be saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        attempt("its tokenizer", tokenizer.save_pretrained, folder)


def attempt(what: str, save: Callable, *arguments: Any, holder: Any = None) -> None:
    """Do what the run will do at its end.

    Args:
        holder: with `to_dict`; names the keys that are to blame.

    Raises:
        CheckpointError: it fails.
    """
    try:
        save(*arguments)
    except Exception as error:  # of any library: whatever it is would come after the work
        refuse_full_disk(error, Path(tempfile.gettempdir()))
        keys = _unwritable(holder)
        where = f", because of {', '.join(keys)}" if keys else ""
        raise CheckpointError(
            f"the model could not be saved when it is pruned: {what} cannot be used{where} "
            f"({_plain(error)}); mend that first."
        ) from error


@contextmanager
def generation_config_as_it_came(model: PreTrainedModel, directory: str | Path) -> Iterator[None]:
    """Write a generation config that transformers would not, while a model is saved.

    Args:
        directory: where the model is saved meanwhile.
    """
    from transformers import GenerationConfig

    if not hasattr(model, "generation_config"):
        yield
        return
    habits, misplaced = model.generation_config, _misplaced(model.config)
    given = GenerationConfig.from_model_config(model.config) if habits is None else habits
    written = _with_misplaced(given, model.config)
    broken = _problem(written) is not None
    for key in misplaced:
        setattr(model.config, key, None)
    model.generation_config = GenerationConfig() if broken else written
    try:
        yield
        if broken and Path(directory).is_dir():
            (Path(directory) / _GENERATION).write_text(_as_text(written))
    finally:
        model.generation_config = habits
        for key, value in misplaced.items():
            setattr(model.config, key, value)


def _problem(habits: GenerationConfig) -> str | None:
    """Say why transformers would not save it; None if it would."""
    try:
        habits.validate(strict=True)
    except Exception as error:  # also of values of a wrong type
        return _plain(error)
    return None


def _written_and_read(habits: GenerationConfig) -> None:
    type(habits).from_dict(json.loads(_as_text(habits)))


def _as_text(habits: GenerationConfig) -> str:
    return habits.to_json_string(keys_to_pop=["compile_config"])


def _misplaced(config: PretrainedConfig) -> dict[str, Any]:
    """Find generation settings in the model's config, where older versions had them."""
    find = getattr(config, "_get_generation_parameters", None)
    return {} if find is None else find()


def _movable(config: PretrainedConfig) -> PretrainedConfig:
    """Copy a config without generation settings, which saving moves to where they belong."""
    config = copy.deepcopy(config)
    for key in _misplaced(config):
        setattr(config, key, None)
    return config


def _with_misplaced(habits: GenerationConfig, config: PretrainedConfig) -> GenerationConfig:
    misplaced = _misplaced(config)
    if not misplaced:
        return habits
    habits = copy.deepcopy(habits)
    for key, value in misplaced.items():
        setattr(habits, key, value)
    return habits


def _unwritable(holder: Any) -> list[str]:
    """List the keys whose values JSON has no form for."""
    found = []
    for key, value in (vars(holder) if holder is not None else {}).items():
        try:
            json.dumps(value, default=_known)
        except (TypeError, ValueError):
            found.append(key)
    return [key for key in found if not key.startswith("_")]


def _known(value: Any) -> Any:
    """Let through what configs write in a way of their own."""
    import torch

    if isinstance(value, torch.dtype) or hasattr(value, "to_dict"):
        return None
    raise TypeError


def _plain(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return (words if len(words) <= 300 else f"{words[:300]} ...").rstrip(".")
