"""Keeps what a pruned checkpoint says about itself, so that what is saved can be loaded.

Widths stand in config.json: one for all layers under the architecture's own key, or per layer in
transformers' schema `per_layer_config`. llm-compressor's `save_pretrained` ends by writing the
*original* config.json back with a few keys patched, so what pruning or the user changed is written
once more after it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from compressed_tensors.distributed import is_source_process
from torch import nn

from funcnet_plugin.bars import ticking
from funcnet_plugin.checkpoints.saved_config import settle_file
from funcnet_plugin.checkpoints.saving import generation_config_as_it_came
from funcnet_plugin.checkpoints.wrapped import refuse_adapter_files
from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import CheckpointError

BLOCK_KEY = "functional_network"
PER_LAYER_KEY = "per_layer_config"
KEPT_FILE = "kept_neurons.json"


def by_figure(reports: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn one report per layer into one list per figure."""
    return {key: [report[key] for report in reports] for key in reports[0]}


def set_widths(config: Any, width_key: str, widths: Sequence[int]) -> None:
    """Tell a transformers config the width of every layer.

    Args:
        config: changed in place. Per-layer settings of other keys stay.
        width_key: config attribute of the width, `intermediate_size` for instance.
        widths: one per decoder layer.
    """
    overrides = {
        int(i): {key: value for key, value in layer.items() if key != width_key}
        for i, layer in (config.to_dict().get(PER_LAYER_KEY) or {}).items()
    }
    config.per_layer_config = None  # before the width is read: it is ambiguous until then
    if len(set(widths)) == 1:
        setattr(config, width_key, int(widths[0]))
    else:
        for i, width in enumerate(widths):
            overrides.setdefault(i, {})[width_key] = int(width)
    overrides = {i: layer for i, layer in overrides.items() if layer}
    if overrides:
        config.per_layer_config = overrides


def saved_keys(config: Any, keys: Sequence[str]) -> dict[str, Any]:
    """List the config.json entries of a pruned model; None for a key that must not be there.

    Next to the attributes `keys`, the per-layer widths and our own block, these are the rotary keys
    under the names that transformers 4, vLLM and llama.cpp's converter read: without them an older
    reader takes a theta of 500000 for its default of 10000, silently.
    """
    data = config.to_dict()
    names = [config.attribute_map.get(key, key) for key in keys]
    entries = {key: data.get(key) for key in (*names, PER_LAYER_KEY, BLOCK_KEY)}
    return entries | rope_for_older_readers(data)


def rope_for_older_readers(data: dict[str, Any]) -> dict[str, Any]:
    """Give the rotary keys under their older names, see `saved_keys`."""
    rope, entries = data.get("rope_parameters"), {}
    if isinstance(rope, dict) and "rope_theta" in rope:
        entries["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            entries["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    return entries


def patch_save_pretrained(
    model: nn.Module,
    changes: Callable[[], dict[str, Any]],
    kept: list[list[int] | None] | None = None,
) -> None:
    """Make every later ``model.save_pretrained(directory)`` write what pruning changed.

    Args:
        model: a transformers model; its bound `save_pretrained` is wrapped, once however often
            this is called. What an earlier call changed is written too.
        changes: config.json entries, asked for when the model's own config.json is written.
        kept: per layer the indices of the kept neurons in the source model, None for all; None
            where no neurons were cut.
    """
    earlier = getattr(model.save_pretrained, "_funcnet_changes", dict)
    inner = getattr(model.save_pretrained, "_funcnet_inner", model.save_pretrained)

    @wraps(inner)
    def save_pretrained(save_directory: str | os.PathLike, *args, **kwargs):
        # Saving leaves a hook that decompresses before the next forward pass; a second save would
        # add another, and the one that comes second finds nothing to decompress.
        stale = getattr(model, "ct_decompress_hook", None)
        if stale is not None:
            stale.remove()
        with (
            saying_full(Path(save_directory)),
            generation_config_as_it_came(model, save_directory),
            ticking("saving the model"),
        ):
            result = inner(save_directory, *args, **kwargs)
        if is_source_process():
            _keep_sentencepiece(model.config, Path(save_directory))
        written = Path(save_directory) / "config.json"
        if is_source_process() and written.exists():
            older = rope_for_older_readers(model.config.to_dict())
            settled = settle_file(written, model.config, older)
            if settled is not None:
                _write_json(written, json.dumps(settled, indent=2, sort_keys=True))
            patch = earlier() | changes()
            update_json(written, patch)
            if kept is not None:
                block = patch[BLOCK_KEY]
                write_kept(
                    Path(save_directory),
                    block["original_widths"],
                    kept,
                    block.get("kept_layers"),
                    block.get("kept_heads"),
                )
        return result

    save_pretrained._funcnet_inner = inner
    save_pretrained._funcnet_changes = lambda: earlier() | changes()
    save_pretrained._overridden = True  # llm-compressor's mark: do not wrap again
    model.save_pretrained = save_pretrained


def _keep_sentencepiece(config: Any, directory: Path) -> None:
    """Copy a vocabulary that GGUF reads, and that tokenizers of transformers 5 do not save."""
    source = getattr(config, "name_or_path", None)
    vocabulary = Path(source or "nowhere") / "tokenizer.model"
    if vocabulary.is_file() and not (directory / vocabulary.name).exists():
        shutil.copy2(vocabulary, directory)


def make_readable_for_older_versions(directory: Path) -> None:
    """Give the tokenizer the class name that transformers 4 knows for the same thing."""
    path = directory / "tokenizer_config.json"
    if path.exists() and json.loads(path.read_text()).get("tokenizer_class") == "TokenizersBackend":
        update_json(path, {"tokenizer_class": "PreTrainedTokenizerFast"})


def update_json(path: Path, changes: dict[str, Any]) -> None:
    """Write `changes` into a JSON object on disk; None removes a key.

    A reader never sees half a file.
    """
    data = json.loads(path.read_text())
    data.update(changes)
    data = {key: value for key, value in data.items() if key not in changes or value is not None}
    _write_json(path, json.dumps(data, indent=2, sort_keys=True))


def _write_json(path: Path, text: str) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def write_kept(
    directory: Path,
    widths: Sequence[int],
    kept: Sequence[list[int] | None],
    layers: Sequence[int] | None = None,
    heads: Sequence[list[int]] | None = None,
) -> None:
    """Write kept_neurons.json: which neurons, and heads, of the source model are still there.

    Args:
        directory: an existing checkpoint directory.
        widths: in the source model, of the layers that are still there.
        kept: for each of them, ascending; None for all.
        layers: their numbers in the source model; None for all layers.
        heads: for each of them the key-value heads, with their queries; None for all.
    """
    content = {
        "widths": list(widths),
        "kept": [list(range(w)) if k is None else k for w, k in zip(widths, kept, strict=True)],
    }
    if layers is not None:
        content["layers"] = list(layers)
    if heads is not None:
        content["heads"] = list(heads)
    _write_json(directory / KEPT_FILE, json.dumps(content))


def read_kept(source: str | Path) -> tuple[list[int], list[list[int]]]:
    """Read widths of the source model and kept neurons, of the layers that are still there.

    Args:
        source: a checkpoint directory that was pruned by this package, or its kept_neurons.json.

    Raises:
        CheckpointError: not there, or not of this form.
    """
    path = Path(source)
    path = path / KEPT_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text())
        widths, kept = content["widths"], content["kept"]
        for width, layer in zip(widths, kept, strict=True):
            if not layer or layer != sorted(set(layer)) or layer[0] < 0 or layer[-1] >= width:
                raise ValueError("indices must ascend and lie below the width")
    except OSError as error:
        raise CheckpointError(f"no kept neurons at {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a file of kept neurons: {error}.") from error
    return widths, kept


def read_layers(source: str | Path) -> list[int] | None:
    """Read which layers of the source model `read_kept` speaks of; None for all."""
    path = Path(source)
    path = path / KEPT_FILE if path.is_dir() else path
    return json.loads(path.read_text()).get("layers")


def read_heads(source: str | Path) -> list[list[int]] | None:
    """Read the kept key-value heads of each layer that `read_kept` speaks of; None for all."""
    path = Path(source)
    path = path / KEPT_FILE if path.is_dir() else path
    return json.loads(path.read_text()).get("heads")


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read config.json of a checkpoint directory.

    Raises:
        CheckpointError: there is none, it is not JSON, or an adapter's lies beside it.
    """
    refuse_adapter_files(directory)
    path = Path(directory) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{directory} is not a checkpoint: it has no config.json.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error


def read_block(directory: str | Path) -> dict[str, Any] | None:
    """Read the `functional_network` block of a checkpoint directory, None for a dense model."""
    return read_config(directory).get(BLOCK_KEY)
