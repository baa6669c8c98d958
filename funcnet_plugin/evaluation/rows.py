"""Keeps measured rows on disk, one after another, so that interrupted work goes on."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from funcnet_plugin.disk import saying_full

Row = dict[str, Any]
_PACKAGES = ("funcnet-plugin", "torch", "transformers", "llmcompressor", "lm-eval")


class KeptRows:
    """Finds rows by their mark, what must be the same for a row to be used again.

    Args:
        path: a file of JSON lines; its directory is made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = _read(path)
        _end_last_line(path)

    def find(self, mark: str) -> Row | None:
        """Give the row of this mark; None if it was not measured."""
        return self._rows.get(mark)

    def add(self, mark: str, row: Row) -> None:
        """Keep a row, with the versions of what measured it."""
        self._rows[mark] = row
        entry = {"mark": mark, "versions": versions(), "row": row}
        with saying_full(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def versions() -> dict[str, str]:
    """List the packages that decide what a row holds, and their versions."""
    return {name: version(name) for name in _PACKAGES}


def _read(path: Path) -> dict[str, Row]:
    """Read rows by their mark; a line that an interruption cut short is measured again."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["mark"]] = entry["row"]
    return found


def _end_last_line(path: Path) -> None:
    """End the last line: what an interruption cut short must not swallow the next row."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        with path.open("a") as file:
            file.write("\n")
