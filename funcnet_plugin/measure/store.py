"""Keeps what a run has finished on disk, so that an interrupted one goes on from there.

One file per layer, written whole or not at all, and one that says what the run was: model, data and
settings must be the same to go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import CheckpointError

_RUN = "run.json"


class Store:
    """Keeps the finished parts of one run, by name.

    Args:
        directory: made if it is not there.
        run: what must be equal for the parts to be used again: plain JSON values.

    Raises:
        CheckpointError: the directory holds another run, or something else.
    """

    def __init__(self, directory: Path, run: dict[str, Any]) -> None:
        self._directory = directory
        path = directory / _RUN
        if path.exists():
            self._compare(path, run)
            return
        if directory.exists() and not directory.is_dir():
            raise CheckpointError(f"resume_dir: {directory} is a file; give a directory.")
        if directory.exists() and any(directory.iterdir()):
            raise CheckpointError(
                f"{directory} holds other files; give resume_dir a directory of its own."
            )
        with saying_full(directory):
            directory.mkdir(parents=True, exist_ok=True)
        _replace(path, "part", lambda part: part.write_text(json.dumps(run, indent=2)))

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write one part; a reader never sees half of it."""
        save_whole(self._path(name), tensors, facts)

    def holds(self, name: str) -> bool:
        """Tell whether a part is there."""
        return self._path(name).exists()

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read one part; None if it was not finished.

        Raises:
            CheckpointError: the file is damaged.
        """
        return read_whole(self._path(name), "its layer is done again")

    def forget(self, name: str | None) -> None:
        """Remove one part, if it is there."""
        if name is not None:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.safetensors"

    def _compare(self, path: Path, run: dict[str, Any]) -> None:
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete the directory.") from error
        now = json.loads(json.dumps(run))
        other = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if other:
            raise CheckpointError(
                f"{self._directory} holds another run: {', '.join(other)} differ; go on with what "
                "that run had, or give another resume_dir."
            )


def save_whole(
    path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], part: str = "part"
) -> None:
    """Write a file; a reader never sees half of it.

    Args:
        path: in a directory that is there.
        facts: plain values.
        part: the end of its name until it is whole; one of its own for each process that may write
            the same file.

    Raises:
        CheckpointError: the disk is full; nothing is left of the file then.
    """
    held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    metadata = {"facts": json.dumps(facts)}
    _replace(path, part, lambda half: save_file(held, half, metadata=metadata))


def read_whole(path: Path, again: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what `save_whole` wrote; None if there is no such file.

    Args:
        again: what is done again without it, for who reads the error.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it, and {again}.") from error


def _replace(path: Path, end: str, write: Callable[[Path], Any]) -> None:
    part = path.with_name(f"{path.name}.{end}")
    try:
        with saying_full(path):
            write(part)
            part.replace(path)
    except CheckpointError:
        part.unlink(missing_ok=True)
        raise
