"""Makes config.json say what the model in memory says.

llm-compressor writes the file at the model's `name_or_path` back, with a few keys patched. Whatever
else was changed in memory (an embedding resized, layers dropped, a rotary base) is lost so, and the
checkpoint cannot be loaded, or computes something else. Files of older versions name settings
otherwise, so both are compared as transformers reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

Entries = dict[str, Any]
# Written by the hosts for themselves; the config in memory does not know better.
_THEIRS = ("transformers_version", "_name_or_path", "quantization_config")
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")


def settle(written: Entries, config: PreTrainedConfig, older: Entries) -> Entries:
    """Find the entries of config.json that give `config` when they are read.

    Args:
        written: what the host wrote. Keys that agree with `config` stay as they are.
        config: of the model in memory.
        older: entries for older readers, which must stay beside the others.
    """
    wanted = _entries(config)
    changed = _differences(written, config, wanted)
    if not changed:
        return written
    patched = _patched(written, changed, config, wanted, older)
    if not _differences(patched, config, wanted):
        return patched
    theirs = {key: written[key] for key in _THEIRS if key in written}
    return json.loads(config.to_json_string()) | older | theirs


def settle_file(path: Path, config: PreTrainedConfig, older: Entries) -> Entries | None:
    """Do the same with a file; None if nothing has to be written."""
    written = json.loads(path.read_text())
    settled = settle(written, config, older)
    return None if settled == written else settled


def _entries(config: PreTrainedConfig) -> Entries:
    entries = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in entries.items() if key not in _THEIRS}


def _differences(written: Entries, config: PreTrainedConfig, wanted: Entries) -> set[str]:
    """Find the keys of which the file gives something else than the config in memory has."""
    try:
        read = _entries(type(config).from_dict({k: v for k, v in written.items()}))
    except Exception:  # a contradiction, such as more layer types than layers: all is to be written
        return set(wanted)
    nothing = object()
    return {k for k in {*wanted, *read} if wanted.get(k, nothing) != read.get(k, nothing)}


def _patched(
    written: Entries, changed: set[str], config: PreTrainedConfig, wanted: Entries, older: Entries
) -> Entries:
    names = set(changed)
    names |= {alias for alias, key in config.attribute_map.items() if key in changed}
    if changed & set(_ROTARY):
        names |= set(_ROTARY)
    if "dtype" in changed and "torch_dtype" in written:
        older = older | {"torch_dtype": wanted.get("dtype")}
    kept = {key: value for key, value in written.items() if key not in names}
    return kept | {key: wanted[key] for key in names if key in wanted} | older
