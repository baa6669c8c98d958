"""Rows of a comparison as tables: Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from typing import Any

from funcnet_plugin.compare.plan import Comparison

Row = dict[str, Any]
Cells = list[str]


def cells(rows: list[Row], plan: Comparison) -> tuple[Cells, list[Cells]]:
    """Give header and lines: one line per method, ratio, repair and setting.

    Several seeds are their mean and standard deviation.
    """
    texts, tasks = list(plan.texts), _tasks(rows)
    with_setting = len(plan.samples) > 1 or bool(plan.sweeps)
    header = ["method", "ratio", "reached", "repair", *(["setting"] if with_setting else []),
              "parameters", *texts, *tasks, "gm", "worst", "seconds", "peak MB",
              "tokens/s"]  # fmt: skip
    lines = []
    for same in grouped(rows):
        row = same[0]
        line = [row["method"], "-" if "ratio" not in row else f"{row['ratio']:g}"]
        if "refused" in row:
            line += ["-", row["repair"], *(["-"] if with_setting else []), row["refused"]]
            lines.append(line + [""] * (len(header) - len(line)))
            continue
        line += [_mean(same, "ratio_reached", 4), row.get("repair", "-")]
        line += [setting_text(row)] if with_setting else []
        line += [_mean(same, "parameters", 0)]
        line += [_spread([r["perplexity"][text] for r in same], 2) for text in texts]
        line += [_spread([r["tasks"][task] for r in same], 4) for task in tasks]
        line += [_spread([r["gm"] for r in same], 3), _spread([r["worst"] for r in same], 3)]
        line += [_mean(same, key, 0) for key in ("seconds", "peak_mb", "tokens_per_second")]
        lines.append(line)
    return header, lines


def grouped(rows: list[Row]) -> list[list[Row]]:
    """Gather rows that differ by the seed only, in order; those that were refused stay apart."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        named = (row.get(name) for name in ("ratio", "repair", "refused"))
        key = (row["method"], *named, setting_text(row))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def setting_text(row: Row) -> str:
    """Say under which samples and swept values a row was measured."""
    if "samples" not in row:
        return "-"
    named = {"samples": row["samples"], **row["setting"]}
    return ", ".join(f"{key}={value}" for key, value in named.items())


def markdown(rows: list[Row], plan: Comparison) -> str:
    """Write the table as Markdown."""
    header, lines = cells(rows, plan)
    text = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    text += [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(text) + "\n"


def as_csv(rows: list[Row], plan: Comparison) -> str:
    """Write one line per row, seeds apart, unrounded."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    plain = ("method", "ratio", "ratio_reached", "repair", "seed", "samples")
    last = ("gm", "worst", "seconds", "peak_mb", "tokens_per_second", "refused")
    swept, tasks = list(plan.sweeps), _tasks(rows)
    writer.writerow([*plain, *swept, "parameters", *plan.texts, *tasks, *last])
    for row in rows:
        writer.writerow(
            [*(row.get(key, "") for key in plain),
             *(row.get("setting", {}).get(key, "") for key in swept),
             row.get("parameters", ""),
             *(row.get("perplexity", {}).get(text, "") for text in plan.texts),
             *(row.get("tasks", {}).get(task, "") for task in tasks),
             *(row.get(key, "") for key in last)]
        )  # fmt: skip
    return written.getvalue()


def _tasks(rows: list[Row]) -> list[str]:
    """List the tasks that were scored: not the plan's, for a group may be scored by its members."""
    return list(dict.fromkeys(task for row in rows for task in row.get("tasks", {})))


def _mean(rows: list[Row], key: str, digits: int) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{statistics.mean(values):,.{digits}f}" if values else "-"


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):,.{digits}f}"
    if len(values) < 2 or statistics.stdev(values) == 0:
        return mean
    return f"{mean} ± {statistics.stdev(values):,.{digits}f}"
