"""Compares what a checkpoint's files hold, by their headers, with what its config says.

Transformers makes up at random what the files lack, and drops what the model has no place for, with
no more than a log line. The comparison is its own: it loads the checkpoint with tensors that have a
shape and no content, so names are renamed and merged as in a real load.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from funcnet_plugin.checkpoints.loading import build_on_meta
from funcnet_plugin.errors import CheckpointError

# In the order in which transformers looks for them.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Buffers that older versions saved; the model computes them itself.
_COMPUTED = ("inv_freq", "masked_bias", "attn.bias", "attention.bias", "position_ids")


@dataclass(frozen=True)
class _Header:
    """Holds a tensor without its content, and the file it is in."""

    tensor: Tensor
    file: Path


def has_weights(directory: Path) -> bool:
    """Tell whether transformers finds weights in a directory."""
    return any((directory / name).exists() for name in _NAMES)


def check_weights(source: str | Path, config: PreTrainedConfig) -> None:
    """Refuse a checkpoint whose files are not what its config describes. No weights are read.

    Args:
        source: directory or hub name; of the latter the files are fetched.
        config: of the checkpoint.

    Raises:
        CheckpointError: no weights, weights missing or of another shape, weights that the model
            would drop though they change what it computes, a file that is damaged.
    """
    found = _headers(source)
    if getattr(config, "auto_map", None) and not _is_native(config):
        return  # its own code decides about names and shapes
    model = build_on_meta(config, source)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for name, header in found.items():
        shape = tuple(header.tensor.shape)
        if expected.get(name, shape) != shape:
            raise CheckpointError(_disagree(source, name, shape, expected[name]))
    if getattr(config, "quantization_config", None) is not None:
        _check_packed(source, model, found)
        return
    info = _loading_info(model, {name: header.tensor for name, header in found.items()})
    dropped = sorted(info["unexpected_keys"])
    if info["missing_keys"]:
        raise CheckpointError(_missing(source, sorted(info["missing_keys"]), dropped))
    for name, shape, wanted in sorted(info["mismatched_keys"]):
        raise CheckpointError(_disagree(source, name, tuple(shape), tuple(wanted)))
    lost = [name for name in dropped if _matters(name, model, found.get(name))]
    if lost:
        raise CheckpointError(
            f"{source} holds weights that a {type(model).__name__} of its config.json has no place "
            f"for and would compute without ({_some(lost)}); restore the config.json that was "
            "saved with these weights."
        )


def _is_native(config: PreTrainedConfig) -> bool:
    from transformers import AutoModelForCausalLM

    return type(config) in AutoModelForCausalLM._model_mapping


def _headers(source: str | Path) -> dict[str, _Header]:
    """Read the header of every tensor that transformers would load, by name.

    Raises:
        CheckpointError: there is none, or a file is missing or damaged.
    """
    found = {}
    for path in _files(source):
        try:
            tensors = load_state_dict(path, map_location="meta")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        except Exception as error:  # what a damaged pickle gives
            raise CheckpointError(
                f"{path} cannot be read: {' '.join(str(error).split())[:200]}."
            ) from error
        found |= {name: _Header(tensor, path) for name, tensor in tensors.items()}
    return found


def _files(source: str | Path) -> list[Path]:
    for name in _NAMES:
        path = _file(source, name)
        if path is None:
            continue
        if path.suffix != ".json":
            return [path]
        try:
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is no index of weights: {error}.") from error
        paths = [(shard, _file(source, shard)) for shard in shards]
        for shard, there in paths:
            if there is None:
                raise CheckpointError(f"{path} names {shard}, which cannot be read: not there.")
        return [there for _, there in paths]
    raise CheckpointError(f"{source} has no weights: no .safetensors and no .bin file.")


def _file(source: str | Path, name: str) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.exists() else None
    found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _loading_info(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, set]:
    """Get transformers' own report of a load; nothing is allocated."""
    with _quiet():
        _, info = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=dict(tensors),
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return info


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep out transformers' table of the same, and a progress bar for no progress."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _check_packed(source: str | Path, model: PreTrainedModel, found: Mapping[str, _Header]) -> None:
    """Check a quantized checkpoint: tensors have other names, but each module must have some.

    Raises:
        CheckpointError: of some there is nothing.
    """
    if not any(name in found for name, _ in _parameters(model)):
        return  # in another format throughout
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    owners = {name.rpartition(".")[0] for name in found}
    missing = [n for n, owner in _parameters(model) if owner not in owners and n not in tied]
    if missing:
        raise CheckpointError(_missing(source, missing, []))


def _parameters(model: PreTrainedModel) -> list[tuple[str, str]]:
    """List every parameter: its name, and the name of the module it is in."""
    return [(name, name.rpartition(".")[0]) for name, _ in model.named_parameters()]


def _matters(name: str, model: PreTrainedModel, header: _Header | None) -> bool:
    """Tell whether the model would compute something else with a tensor that it drops.

    A part beside the decoder (a value head, layers that predict several tokens) does not matter,
    one inside it does; neither do buffers that are computed, nor a bias of zeros.
    """
    if name.endswith(_COMPUTED):
        return False
    modules = dict(model.named_modules())
    owner = name.rpartition(".")[0]
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    if owner in ("", model.base_model_prefix):
        return False
    if header is not None and name.endswith("bias"):
        return bool(load_state_dict(header.file)[name].any())
    return True


def _missing(source: str | Path, missing: list[str], dropped: list[str]) -> str:
    renamed = next((d for d in dropped for m in missing if d.endswith(f".{m}")), None)
    mend = (
        "restore the file that held them"
        if renamed is None
        else f"the files call them otherwise ({renamed}), so rename them"
    )
    return (
        f"{source} lacks {len(missing)} weights that its config.json describes, and they would be "
        f"made up at random ({_some(missing)}); {mend}."
    )


def _disagree(
    source: str | Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> str:
    return (
        f"{source}: config and weights disagree: {name} is {found} in the file and {wanted} by "
        "config.json; restore the config.json that was saved with these weights."
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
