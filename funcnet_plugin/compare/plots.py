"""Rows of a comparison as plots.

They stand against the ratio and the number of calibration samples, as in the paper's Figures 4 and
5, and against whatever was swept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.compare.table import Row

_FIGURES = {"gm": "geometric mean", "worst": "worst text"}


def write_plots(rows: list[Row], plan: Comparison, out: Path) -> list[Path]:
    """Draw one PNG per axis with more than one value, and return their paths.

    Every other axis is held at its first value; seeds are averaged, bars are their standard
    deviation.
    """
    axes: dict[str, Callable[[Row], Any]] = {"ratio": lambda row: row["ratio"]}
    axes["samples"] = lambda row: row["samples"]
    first = {"ratio": plan.ratios[0], "samples": plan.samples[0]}
    for name, values in plan.sweeps.items():
        position = _positions(values)
        axes[name] = lambda row, name=name, at=position: at(row["setting"].get(name))
        first[name] = position(values[0])
    measured = [row for row in rows if row["method"] != "dense" and "refused" not in row]
    written = []
    for name, value in axes.items():
        held = [
            row
            for row in measured
            if all(axes[o](row) in (None, first[o]) for o in axes if o != name)
        ]
        held = [row for row in held if value(row) is not None]
        if len({value(row) for row in held}) > 1:
            written.append(_plot(held, name, value, out / plot_name(name)))
    return written


def plot_name(axis: str) -> str:
    """Name the file of an axis; what looks like an ending in a dotted name does not stay one."""
    return f"{axis.replace('.', '-')}.png"


def _positions(values: Sequence[Any]) -> Callable[[Any], float | str | None]:
    """Place the values of a field on an axis: numbers as they are, anything else by name."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return lambda value: value if value is None or numbers else str(value)


def _plot(rows: list[Row], name: str, value: Callable[[Row], Any], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{row['method']}, {row['repair']}", []).append(row)
    for panel, (key, title) in zip(panels, _FIGURES.items(), strict=True):
        for label, line in lines.items():
            xs = list(dict.fromkeys(value(row) for row in line))  # names: in the plan's order
            xs = xs if isinstance(xs[0], str) else sorted(xs)
            ys = [[row[key] for row in line if value(row) == x] for x in xs]
            spread = [statistics.stdev(y) if len(y) > 1 else 0.0 for y in ys]
            panel.errorbar(
                xs, [statistics.mean(y) for y in ys], spread, label=label, marker="o", capsize=2
            )
        panel.set(xlabel=name, ylabel="perplexity relative to dense", yscale="log", title=title)
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize="small", bbox_to_anchor=(1.02, 1.0), loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
