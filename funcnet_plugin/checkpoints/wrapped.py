"""Refuses models that are wrapped in something else: adapters, compilers, parametrizations.

Their weights are not those that a checkpoint of the plain model would hold, so what is saved of
them is something else. They are refused by name, with what gives the plain model back.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.nn.utils import parametrize

from funcnet_plugin.errors import CheckpointError

_MERGE = "merge it into its base model first (peft: merge_and_unload)"
_ADAPTER = "adapter_config.json"
# What torch's older utilities and LoRA libraries leave beside, or instead of, a weight.
_SPLIT_WEIGHTS = ("weight_g", "weight_v", "weight_orig")
_LOW_RANK = ("lora_", "lokr_", "loha_", "hada_", "oft_", "ia3_")


def refuse_adapter_files(source: str | Path) -> None:
    """Refuse an adapter: it is no model, and transformers loads it into one that it lies beside.

    Raises:
        CheckpointError: a checkpoint directory that holds an adapter.
    """
    if (Path(source) / _ADAPTER).is_file():
        raise CheckpointError(
            f"{source} holds an adapter such as LoRA ({_ADAPTER}); {_MERGE}, save the merged model "
            "and give that directory."
        )


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model whose modules do not hold their own weights: it cannot be cut and saved.

    Raises:
        CheckpointError: an adapter, a compiled model, a parametrized weight.
    """
    if getattr(model, "_hf_peft_config_loaded", False) or _is_peft(model):
        raise CheckpointError(
            f"the model ({type(model).__name__}) has an adapter such as LoRA; {_MERGE} and give "
            "the merged model."
        )
    for name, module in model.named_modules():
        found = _wrapper(module)
        if found is not None:
            what, mend = found
            raise CheckpointError(
                f"the model has {what} at {name or 'its root'} ({type(module).__name__}); {mend}."
            )


def _is_peft(module: nn.Module) -> bool:
    return any(cls.__module__.split(".")[0] == "peft" for cls in type(module).__mro__)


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    """Find what wraps a module's weights, and what gives the plain module back."""
    own = [*module._parameters, *module._modules]
    if _is_peft(module) or any(name.lower().startswith(_LOW_RANK) for name in own):
        return "an adapter such as LoRA", f"{_MERGE} and give the merged model"
    if "_orig_mod" in module._modules:
        return "a compiled module", "give the model as it was before torch.compile (_orig_mod)"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "a parallel wrapper", "give the model inside it (.module)"
    if "_fsdp_wrapped_module" in module._modules:
        return "a sharding wrapper", "give the whole model, loaded without FSDP"
    if parametrize.is_parametrized(module):
        return (
            "a parametrized weight",
            "make it a plain one first (torch.nn.utils.parametrize.remove_parametrizations)",
        )
    if any(name in _SPLIT_WEIGHTS for name in module._parameters):
        return (
            "a weight that is computed from others (weight_norm, spectral_norm, torch pruning)",
            "make it a plain one first (torch.nn.utils: remove_weight_norm, prune.remove)",
        )
    return None
