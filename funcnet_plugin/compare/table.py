"""Rows of a comparison as tables: Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def header(texts: Iterable[str]) -> list[str]:
    return ["method", "ratio", "reached", "repair", "parameters", *texts, "gm", "worst", "seconds",
            "tokens/s"]  # fmt: skip


def cells(rows: list[Row], texts: list[str]) -> list[list[str]]:
    """One line per method, ratio and repair; several seeds as mean and standard deviation."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (row["method"], row.get("ratio"), row.get("compensation"))
        groups.setdefault(key, []).append(row)
    lines = []
    for (name, ratio, repair), same in groups.items():
        start = [name, "-" if ratio is None else f"{ratio:g}"]
        if "refused" in same[0]:
            lines.append([*start, "-", repair, same[0]["refused"], *[""] * (len(texts) + 4)])
            continue
        reached = [row.get("ratio_reached", 0.0) for row in same]
        lines.append(
            [
                *start,
                f"{statistics.mean(reached):.4f}",
                repair or "-",
                f"{statistics.mean(row['parameters'] for row in same):,.0f}",
                *(_spread([row["perplexity"][text] for row in same], 2) for text in texts),
                _spread([row["gm"] for row in same], 3),
                _spread([row["worst"] for row in same], 3),
                _spread([row.get("seconds", 0.0) for row in same], 0),
                _spread([row["tokens_per_second"] for row in same], 0),
            ]
        )
    return lines


def markdown(rows: list[Row], texts: list[str]) -> str:
    names = header(texts)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(line)} |" for line in cells(rows, texts)]
    return "\n".join(lines) + "\n"


def as_csv(rows: list[Row], texts: list[str]) -> str:
    """One line per row, seeds apart, unrounded."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    plain = ("method", "ratio", "ratio_reached", "compensation", "seed", "parameters")
    last = ("gm", "worst", "seconds", "tokens_per_second", "refused")
    writer.writerow([*plain, *texts, *last])
    for row in rows:
        measured = row.get("perplexity", {})
        writer.writerow(
            [*(row.get(key, "") for key in plain), *(measured.get(text, "") for text in texts),
             *(row.get(key, "") for key in last)]
        )  # fmt: skip
    return written.getvalue()


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):,.{digits}f}"
    if len(values) < 2 or statistics.stdev(values) == 0:
        return mean
    return f"{mean} ± {statistics.stdev(values):,.{digits}f}"
