"""Tells the tasks of a directory apart by what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from funcnet_plugin.digests import digest_of_file


def digest_of_tasks(directory: Path) -> dict[str, str]:
    """Digest settings and code below, where tasks name each other, and local data they name."""
    files = sorted(path for kind in ("*.yaml", "*.py") for path in directory.rglob(kind))
    found = {str(path.relative_to(directory)): digest_of_file(path) for path in files}
    data = {Path(name) for path in files for name in _data_of(path)}
    return found | {str(path): digest_of_file(path) for path in sorted(data) if path.is_file()}


def _data_of(task: Path) -> Iterator[str]:
    """List the data files that a task names."""
    try:
        named = yaml.load(task.read_text(), _TaskLoader)["dataset_kwargs"]["data_files"]
        for value in named.values() if isinstance(named, Mapping) else [named]:
            yield from [value] if isinstance(value, str) else value
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return  # no task, or none with data here


class _TaskLoader(yaml.SafeLoader):
    """Reads tasks without lm-eval's own tags (`!function`), which do not matter here."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)
