"""Keeps what a model wrote in a directory, for the next run of any recipe.

A file for each text, named by a digest of all that decides it: another model, seed or calibration
text makes a file of its own beside the others, and so does every process of several.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from loguru import logger
from torch import Tensor, nn

from funcnet_plugin import __version__
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.measure.fingerprint import fingerprint_model
from funcnet_plugin.measure.store import read_whole, save_whole
from funcnet_plugin.text.sampling import TEMPERATURE

_OURS = re.compile(r"[a-z-]+-[0-9a-f]{20}\.safetensors(\.\d+)?")  # with a number while written
_KEY = "windows"


class TextCache:
    """Keeps texts of one model, and leaves those of others alone.

    Args:
        directory: made if it is not there.
        model: dense, in memory.

    Raises:
        CheckpointError: the directory is a file, holds other things than texts, or is not to be
            written in.
    """

    def __init__(self, directory: Path, model: nn.Module) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            found = [p.name for p in directory.iterdir() if not p.name.startswith(".")]
        except OSError as error:
            raise CheckpointError(
                f"text_cache: {directory} cannot be a directory of texts ({error.strerror}); give "
                "another."
            ) from error
        foreign = sorted(name for name in found if not _OURS.fullmatch(name))
        if foreign:
            raise CheckpointError(
                f"text_cache: {directory} holds other files ({foreign[0]}); give it a directory of "
                "its own."
            )
        if not os.access(directory, os.W_OK):
            raise CheckpointError(f"text_cache: {directory} is read-only; give another directory.")
        self._model = fingerprint_model(model)

    def load(self, facts: dict[str, Any]) -> Tensor | None:
        """Read a text: (n_windows, window), int64; None if it is not there.

        Args:
            facts: see `facts_of`.

        Raises:
            CheckpointError: the file is damaged, or holds another text than its name says.
        """
        facts = facts | {"model": self._model}
        path = self._path(facts)
        found = read_whole(path, "the text is written again")
        if found is None:
            return None
        tensors, written = found
        other = sorted(k for k in {*facts, *written} if facts.get(k) != written.get(k))
        if other:
            raise CheckpointError(
                f"{path} holds another text than its name says ({', '.join(other)} differ), so it "
                "was renamed or copied; delete it, and the text is written again."
            )
        windows = tensors.get(_KEY)
        if windows is None or windows.shape != (facts["windows"], facts["window"]):
            raise CheckpointError(
                f"{path} is damaged (windows are missing); delete it, and the text is written "
                "again."
            )
        logger.info(f"taken from {path}: {len(windows)} windows that the model wrote before")
        return windows

    def save(self, facts: dict[str, Any], windows: Tensor) -> None:
        """Write a text; a reader never sees half of it."""
        facts = facts | {"model": self._model}
        save_whole(self._path(facts), {_KEY: windows}, facts, part=str(os.getpid()))

    def _path(self, facts: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._directory / f"{facts['kind']}-{digest[:20]}.safetensors"


def facts_of(
    kind: str, begin: Sequence[Sequence[int]], ordinary: Collection[int], window: int, seed: int
) -> dict[str, Any]:
    """Say all that decides a text besides the model: plain values.

    Args:
        kind: what it is for, a name of small letters.
        begin, ordinary, window, seed: see `writing.write`.
    """
    return {
        "kind": kind,
        "begin": _digest(begin),
        "windows": len(begin),
        "window": window,
        "tokens": _digest(sorted(ordinary)),
        "seed": seed,
        "temperature": TEMPERATURE,
        "version": __version__,
    }


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
