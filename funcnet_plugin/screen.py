"""Writes tables and numbers as text, for a log, a terminal and a file alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_GB = 2**30


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Put cells into columns: the first and the last to the left, those between to the right.

    Args:
        rows: each of as many cells as there are heads.
    """
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    last = len(heads) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def size(count: float) -> str:
    """Say a number of bytes in GB, with as many digits as can be meant."""
    gigabytes = count / _GB
    return f"{gigabytes:.2f}" if gigabytes < 10 else f"{gigabytes:,.0f}"


def duration(seconds: float) -> str:
    """Say a time as one says it: 42 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def span(numbers: Collection[int]) -> str:
    """Say what numbers there are: one that all are, or the least and the most."""
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"
