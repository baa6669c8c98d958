"""Shows the demo's result: a table on the terminal, plots as PNG, one page as HTML."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from funcnet_plugin.demo.evaluate import DOCUMENTS, Evaluation
from funcnet_plugin.demo.skills import SKILLS

Row = tuple[str, str, str, str]  # what, dense, pruned, change
CONVENTIONS = (
    "Skills: share of test questions for which the right one of four answers has the largest "
    "log-likelihood (lm-eval acc, chance 25%), with its standard error; the prompts were not in "
    "training, except for Facts, which can only be memorised. Perplexity: lm-eval byte_perplexity "
    f"over {DOCUMENTS} test documents; one token is one character here, so it is per token too. "
    "Tokens per second: forward passes of 16 x 128 tokens on CPU, the two models taking turns, "
    "median of nine. "
    "Both models are loaded by stock transformers in float32 and see the same questions."
)


def result_rows(dense: Evaluation, pruned: Evaluation, speeds: list[float]) -> list[Row]:
    """Format the comparison, one row per figure. speeds: tokens per second, dense, pruned."""

    def relative(a: float, b: float) -> str:
        return f"{(b - a) / a:+.1%}"

    rows = [
        ("parameters", f"{dense.parameters:,}", f"{pruned.parameters:,}",
         relative(dense.parameters, pruned.parameters)),
        ("size on disk (MB)", f"{dense.bytes_on_disk / 1e6:.2f}",
         f"{pruned.bytes_on_disk / 1e6:.2f}", relative(dense.bytes_on_disk, pruned.bytes_on_disk)),
        ("perplexity", f"{dense.byte_perplexity:.3f}", f"{pruned.byte_perplexity:.3f}",
         relative(dense.byte_perplexity, pruned.byte_perplexity)),
        ("tokens per second", f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", relative(*speeds)),
    ]  # fmt: skip
    for skill, about in SKILLS.items():
        a, b = dense.accuracy[skill], pruned.accuracy[skill]
        rows.append(_points(about.title, a, b))
    means = (sum(e.accuracy.values()) / len(e.accuracy) for e in (dense, pruned))
    return [*rows, _points("mean of skills", *means)]


def _points(name: str, dense: float, pruned: float) -> Row:
    change = 100 * (pruned - dense)
    return (f"{name} (%)", f"{100 * dense:.1f}", f"{100 * pruned:.1f}", f"{change:+.1f}")


def headline(block: dict[str, Any]) -> str:
    """Say in one line what was cut, from the checkpoint's own `functional_network` block."""
    return (
        f"{block['pruning_ratio_reached']:.1%} of all parameters removed (asked: "
        f"{block['pruning_ratio_requested']:.1%}), width {block['original_widths'][0]} -> "
        f"{block['kept_widths'][0]} in {len(block['kept_widths'])} layers"
    )


def terminal_table(rows: list[Row]) -> Table:
    table = Table("")
    for column in ("dense", "pruned", "change"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def write_plots(
    out: Path, dense: Evaluation, pruned: Evaluation, block: dict[str, Any]
) -> list[Path]:
    """Draw skills.png and widths.png, and return their paths."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    names = list(SKILLS)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for offset, label, evaluation in ((-0.2, "dense", dense), (0.2, "pruned", pruned)):
        axes.barh(
            [i + offset for i in range(len(names))],
            [100 * evaluation.accuracy[s] for s in names],
            height=0.38,
            xerr=[100 * evaluation.stderr[s] for s in names],
            label=label,
        )
    axes.axvline(25, color="grey", linewidth=1, linestyle=":", label="chance")
    axes.set_yticks(range(len(names)), [SKILLS[s].title for s in names])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy (%), bars: standard error")
    axes.legend(loc="lower left")
    paths = [out / "skills.png"]
    figure.savefig(paths[0], dpi=130)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    layers = range(len(block["kept_widths"]))
    axes.bar(layers, block["original_widths"], color="lightgrey", label="cut")
    axes.bar(layers, block["kept_widths"], label="kept")
    axes.set(xlabel="layer", ylabel="neurons", xticks=list(layers))
    axes.legend(loc="lower right")
    paths.append(out / "widths.png")
    figure.savefig(paths[1], dpi=130)
    plt.close(figure)
    return paths


def write_page(out: Path, rows: list[Row], block: dict[str, Any], plots: list[Path]) -> Path:
    """Write report.html: one self-contained file, images inside."""
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    settings = "\n".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in block["settings"].items()
    )
    images = "\n".join(
        f'<img alt="{path.stem}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for path in plots
    )
    page = out / "report.html"
    page.write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>funcnet demo</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: auto; padding: 1rem }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0 }}
td, th {{ padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
img {{ max-width: 100%; background: white; margin: 1rem 0 }}
</style>
<h1>Functional-network pruning: the demo</h1>
<p>{html.escape(headline(block))}</p>
<table><tr><th></th><th>dense</th><th>pruned</th><th>change</th></tr>
{body}
</table>
<p>{html.escape(CONVENTIONS)}</p>
{images}
<h2>Settings of the pruning modifier</h2>
<table>{settings}</table>
</html>
"""
    )
    return page


def write_json(
    out: Path,
    dense: Evaluation,
    pruned: Evaluation,
    speeds: list[float],
    block: dict[str, Any],
) -> dict[str, Any]:
    """Write results.json, and return what it holds."""
    results = {
        "tokens_per_second": {"dense": speeds[0], "pruned": speeds[1]},
        "dense": asdict(dense),
        "pruned": asdict(pruned),
        "functional_network": block,
        "conventions": CONVENTIONS,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results
