"""What a pruned checkpoint says about itself, and making what is saved loadable.

llm-compressor's `save_pretrained` ends by writing the *original* config.json back with a few keys
patched, so the new width is lost and the checkpoint cannot be loaded. The keys that pruning changes
are therefore written once more after it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from funcnet_plugin.errors import CheckpointError

BLOCK_KEY = "functional_network"
PER_LAYER_REFUSAL = (
    "layers of different widths cannot be saved yet, only used in memory; to save, use allocation: "
    "uniform with skip_first: 0 and skip_last: 0."
)


def config_changes(width_key: str, kept: list[int], bias_key: str | None) -> dict[str, Any]:
    """The config.json keys that pruning changes.

    Args:
        width_key: config key of the width.
        kept: width per layer, after pruning.
        bias_key: config switch to turn on, if the MLPs have got a bias.

    Raises:
        CheckpointError: the layers have different widths.
    """
    if len(set(kept)) != 1:
        raise CheckpointError(PER_LAYER_REFUSAL)
    changes: dict[str, Any] = {width_key: int(kept[0])}
    if bias_key is not None:
        changes[bias_key] = True
    return changes


def patch_saved_config(model: nn.Module, changes: Callable[[], dict[str, Any]]) -> None:
    """Make every later ``model.save_pretrained(directory)`` write `changes` into config.json.

    Args:
        model: a transformers model; its bound `save_pretrained` is wrapped, once however often
            this is called.
        changes: called before anything is written, so that it can refuse to save.
    """
    inner = model.save_pretrained
    inner = getattr(inner, "_funcnet_inner", inner)

    @wraps(inner)
    def save_pretrained(save_directory: str | os.PathLike, *args, **kwargs):
        patch = changes()
        result = inner(save_directory, *args, **kwargs)
        # Absent where another process of a distributed run does the writing.
        if (Path(save_directory) / "config.json").exists():
            update_config(Path(save_directory), patch)
        return result

    save_pretrained._funcnet_inner = inner
    save_pretrained._overridden = True  # llm-compressor's mark: do not wrap again
    model.save_pretrained = save_pretrained


def update_config(directory: Path, changes: dict[str, Any]) -> None:
    """Write `changes` into directory/config.json; a reader never sees half a file."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def read_block(directory: str | Path) -> dict[str, Any] | None:
    """The `functional_network` block of a checkpoint directory, None for a dense model."""
    path = Path(directory) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{directory} is not a checkpoint: it has no config.json.")
    return json.loads(path.read_text()).get(BLOCK_KEY)
