"""Draws quality against speed against size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MB = 2**20


def write_plot(found: Mapping[str, Any], path: Path) -> bool:
    """Draw one point for each model, backend and load.

    To the right is faster (tokens per second of all that is written), up is better (perplexity,
    geometric mean over texts; megabytes on disk where no text was given), and the area of a point
    is its size on disk.

    Args:
        found: see `results.document`.

    Returns:
        whether there was anything to draw: backends that write tokens.
    """
    rows = [row for row in found["rows"] if row.get("tokens_per_second")]
    quality = {m["name"]: _mean(m["perplexity"]) for m in found["models"] if m["perplexity"]}
    if quality:  # twins have random weights
        rows = [row for row in rows if row["model"] in quality]
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    largest = max(row["disk_bytes"] for row in rows)
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        load = row["load"]
        at_once = f" x {load['concurrency']}" if load["concurrency"] > 1 else ""
        label = f"{row['backend']} {load['prompt']}/{load['written']}{at_once}"
        series.setdefault(label, []).append(row)
    for label, of in series.items():
        xs = [row["tokens_per_second"] for row in of]
        ys = [quality.get(row["model"], row["disk_bytes"] / _MB) for row in of]
        axes.scatter(xs, ys, [400 * row["disk_bytes"] / largest for row in of], alpha=0.6,
                     label=label)  # fmt: skip
        for row, x, y in zip(of, xs, ys, strict=True):
            axes.annotate(row["model"], (x, y), fontsize="x-small")
    axes.set(xscale="log", xlabel="tokens written per second",
             ylabel="perplexity" if quality else "MB on disk")  # fmt: skip
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="area: size on disk")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _mean(perplexities: Mapping[str, float]) -> float:
    return math.exp(sum(map(math.log, perplexities.values())) / len(perplexities))
