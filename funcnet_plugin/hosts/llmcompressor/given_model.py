"""Checks what must be true of the model that a run is given, and of what it is saved as.

Every modifier of ours asks first: a model that something is wrapped around, that has another head
than a language model's, that is not what its config says or that could not be saved is refused
before any calibration.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.offload import disable_onloading, from_accelerate
from llmcompressor.core import active_session
from llmcompressor.modifiers import Modifier
from loguru import logger
from torch import nn

from funcnet_plugin.checkpoints import saving
from funcnet_plugin.checkpoints.wrapped import refuse_adapter_files, refuse_wrapped
from funcnet_plugin.disk import check_room
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.hosts.llmcompressor import checks
from funcnet_plugin.hosts.llmcompressor.call import running
from funcnet_plugin.hosts.llmcompressor.size import smallest_size
from funcnet_plugin.output import check_directory


def check_model(modifier: Modifier, model: nn.Module) -> None:
    """Refuse what would be found out when the model is saved, or loaded again.

    Args:
        modifier: ours; what stands before it in the recipe may have changed the model already.

    Raises:
        FuncnetError: one sentence on what cannot be pruned or saved.
    """
    refuse_wrapped(model)
    checks.refuse_quantized(model)
    if not hasattr(model, "config"):
        return  # no model of transformers: the adapters decide
    _refuse_other_head(model)
    modifiers = active_session().lifecycle.recipe.modifiers
    if not modifiers or modifiers[0] is modifier:
        _check_modules(model)
        _warn_of_other_rotations(model)
        _check_run(model)
    saving.rehearse(model)
    _rehearse_recipe(model)


def check_given_model(given: Any, trust_remote_code: bool = False) -> None:
    """Refuse what `oneshot` is given as a model before llm-compressor loads or wraps it.

    Args:
        given: directory, hub name or model; a hub name is left to the load.

    Raises:
        FuncnetError: one sentence on what cannot be loaded as it was saved.
    """
    from funcnet_plugin.checkpoints.loading import read_model_config
    from funcnet_plugin.checkpoints.weights import check_weights

    if isinstance(given, nn.Module):
        refuse_wrapped(given)
        _check_origin(given, trust_remote_code)
    elif isinstance(given, str | Path) and Path(given).is_dir():
        refuse_adapter_files(given)
        config = read_model_config(given, trust_remote_code)
        saving.check_generation_file(given)
        check_weights(given, config)


def take_over_offloading(given: Any) -> None:
    """Turn accelerate's offloading into that of llm-compressor, which knows no other.

    It does so itself where a model has a device map; accelerate's own `cpu_offload` and
    `disk_offload` leave none.

    Args:
        given: directory, hub name or model.
    """
    if not isinstance(given, nn.Module) or hasattr(given, "hf_device_map"):
        return
    hooks = [m._hf_hook for m in given.modules() if hasattr(m, "_hf_hook")]
    if not hooks:
        return
    from accelerate.hooks import remove_hook_from_submodules
    from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset

    def store(hook: Any) -> Any:
        found = getattr(hook, "weights_map", None)
        while isinstance(found, PrefixedDataset):
            found = found.dataset
        return found

    if any(isinstance(store(hook), OffloadedWeightsLoader) for hook in hooks):
        from_accelerate(given)
    else:
        remove_hook_from_submodules(given)  # weights are in memory already


def _check_origin(model: nn.Module, trust_remote_code: bool) -> None:
    """Refuse a model of nowhere: llm-compressor reads the config at the place that it names.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import AutoConfig

    origin = getattr(getattr(model, "config", None), "name_or_path", None)
    if origin is None:
        return
    try:
        AutoConfig.from_pretrained(origin, trust_remote_code=trust_remote_code)
    except Exception as error:  # no such place, no config there, code that may not run
        where = f"from {origin}, where no config can be read" if origin else "from nowhere"
        raise CheckpointError(
            f"the model comes {where}, and llm-compressor looks there; save model and tokenizer "
            "into a directory, and load the model from it."
        ) from error


def _refuse_other_head(model: nn.Module) -> None:
    find = getattr(model, "get_output_embeddings", None)
    decoder_only = not getattr(model.config, "is_encoder_decoder", False)
    if find is None or (decoder_only and find() is not None):
        return
    raise CheckpointError(
        f"a {type(model).__name__} is no causal language model; prune the language model "
        "(AutoModelForCausalLM), and put another head on what is left."
    )


def _check_modules(model: nn.Module) -> None:
    """Compare the model with what its class builds of its config, which is what a reload does.

    Raises:
        CheckpointError: parameters are missing, more, or of another shape.
    """
    found = _shapes(model)
    if any(".experts." in name for name in found):
        return  # llm-compressor has taken the experts apart
    try:
        with torch.device("meta"):
            wanted = _shapes(type(model)(copy.deepcopy(model.config)))
    except Exception:  # of a class with code of its own; a config that contradicts itself is
        return  # found when it is written and read again
    kind = type(model).__name__
    if more := sorted(set(found) - set(wanted)):
        raise CheckpointError(
            f"the model has {more[0]}, for which a {kind} of its config has no place, so a reload "
            "would drop it; take it out or say it in model.config."
        )
    if less := sorted(set(wanted) - set(found)):
        raise CheckpointError(
            f"the model lacks {less[0]}, which a {kind} of its config has and a reload would make "
            "up; set model.config to what the model is (num_hidden_layers, layer_types)."
        )
    for name, shape in found.items():
        if shape != wanted[name]:
            raise CheckpointError(
                f"{name} is {shape}, and {wanted[name]} by the model's config, so a reload would "
                "fail; set model.config to what the model is."
            )


def _warn_of_other_rotations(model: nn.Module) -> None:
    """Say that a rotary base in the config came too late: modules read it when they are built."""
    for name, module in model.named_modules():
        old = {key: b for key, b in module._buffers.items() if key.endswith("inv_freq")}
        if not old or not hasattr(module, "config"):
            continue
        try:
            new = type(module)(copy.deepcopy(model.config))._buffers
        except Exception:  # of a class that is built otherwise
            continue
        for key, buffer in old.items():
            other = new.get(key)
            if other is None or buffer.is_meta or other.shape != buffer.shape:
                continue
            if not torch.allclose(buffer.float().cpu(), other.float().cpu(), rtol=2e-2):
                logger.warning(
                    f"{name} computes with other rotations than the model's config says, and what "
                    "is saved will compute with those of the config; if they are meant, build the "
                    "model with them (from_pretrained(..., config=config))."
                )
                return


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    with disable_onloading():
        return {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}


def _check_run(model: nn.Module) -> None:
    """Look at where the model goes, as `oneshot` was told.

    Raises:
        CheckpointError: tokenizer or directory are none to save.
    """
    call = running()
    if call is None or call.output_dir is None:
        return
    check_directory(call.output_dir)
    size = smallest_size(model, active_session().lifecycle.recipe.modifiers)
    check_room(call.output_dir, size)
    if call.tokenizer is not None:
        saving.check_tokenizer(call.tokenizer)


def _rehearse_recipe(model: nn.Module) -> None:
    """Write this run's recipe after the one beside the model, as llm-compressor will.

    Raises:
        CheckpointError: that one cannot be read.
    """
    from llmcompressor.transformers.utils.helpers import infer_recipe_from_model_path

    name = getattr(model, "name_or_path", "")
    recipe = active_session().lifecycle.recipe
    if Path(name).is_dir() and recipe is not None:
        earlier = infer_recipe_from_model_path(name)
        saving.attempt(
            f"its recipe, together with {earlier},",
            lambda: recipe.yaml(file_path=None, existing_recipe_path=earlier),
        )
