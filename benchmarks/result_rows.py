"""Keeps measured rows in benchmarks/results, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def replace_rows(path: Path, rows: Iterable[Mapping[str, Any]], **about: str | int) -> None:
    """Put rows into a file, in place of those that were measured with the same.

    Args:
        path: made if it is not there.
        rows: each is written with `about`.
        about: field -> value that a row must have to be replaced.
    """
    held = path.read_text().splitlines() if path.exists() else []
    others = [
        row
        for row in map(json.loads, held)
        if any(row.get(key) != value for key, value in about.items())
    ]
    mine = [about | dict(row) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*others, *mine]))
