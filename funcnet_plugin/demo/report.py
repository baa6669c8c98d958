"""Shows the demo's result: a table on the terminal, plots as PNG, one page as HTML."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from funcnet_plugin.demo.evaluate import DOCUMENTS, Evaluation
from funcnet_plugin.demo.networks import Anatomy
from funcnet_plugin.demo.skills import SKILLS
from funcnet_plugin.demo.story import HEADER, HOW, carrier_rows, sentence, summary

# what, dense, pruned, change; and what random neurons of the same number do instead
Row = tuple[str, str, str, str, str]
COLUMNS = ("dense", "pruned", "change", "random choice")
CONVENTIONS = (
    "Skills: share of test questions for which the right one of four answers has the largest "
    "log-likelihood (lm-eval acc, chance 25%), with its standard error; the prompts were not in "
    "training, except for Facts, which can only be memorised. Perplexity: lm-eval byte_perplexity "
    f"over {DOCUMENTS} test documents; one token is one character here, so it is per token too. "
    "Tokens per second: forward passes of 16 x 128 tokens on CPU, the two models taking turns, "
    "median of nine. "
    "Random choice: the same recipe with random scores, as many neurons of each layer cut and "
    "repaired the same way. "
    "All models are loaded by stock transformers in float32 and see the same questions."
)


def result_rows(
    dense: Evaluation, pruned: Evaluation, random: Evaluation, speeds: list[float]
) -> list[Row]:
    """Format the comparison, one row per figure. speeds: tokens per second, dense, pruned."""

    def relative(a: float, b: float) -> str:
        return f"{(b - a) / a:+.1%}"

    def megabytes(evaluation: Evaluation) -> str:
        return f"{evaluation.bytes_on_disk / 1e6:.2f}"

    rows = [
        ("parameters", f"{dense.parameters:,}", f"{pruned.parameters:,}",
         relative(dense.parameters, pruned.parameters), f"{random.parameters:,}"),
        ("size on disk (MB)", megabytes(dense), megabytes(pruned),
         relative(dense.bytes_on_disk, pruned.bytes_on_disk), megabytes(random)),
        ("perplexity", f"{dense.byte_perplexity:.3f}", f"{pruned.byte_perplexity:.3f}",
         relative(dense.byte_perplexity, pruned.byte_perplexity), f"{random.byte_perplexity:.3f}"),
        ("tokens per second", f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", relative(*speeds), ""),
    ]  # fmt: skip
    every = (dense, pruned, random)
    for skill, about in SKILLS.items():
        rows.append(_points(about.title, *(e.accuracy[skill] for e in every)))
    means = (sum(e.accuracy.values()) / len(e.accuracy) for e in every)
    return [*rows, _points("mean of skills", *means)]


def _points(name: str, dense: float, pruned: float, random: float) -> Row:
    change = 100 * (pruned - dense)
    shown = (f"{100 * value:.1f}" for value in (dense, pruned, random))
    return (f"{name} (%)", next(shown), next(shown), f"{change:+.1f}", next(shown))


def headline(block: dict[str, Any]) -> str:
    """Say in one line what was cut, from the checkpoint's own `functional_network` block."""
    return (
        f"{block['pruning_ratio_reached']:.1%} of all parameters removed (asked: "
        f"{block['pruning_ratio_requested']:.1%}), width {block['original_widths'][0]} -> "
        f"{block['kept_widths'][0]} in {len(block['kept_widths'])} layers"
    )


def terminal_table(rows: list[Row]) -> Table:
    table = Table("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def write_plots(
    out: Path, dense: Evaluation, pruned: Evaluation, random: Evaluation, block: dict[str, Any]
) -> list[Path]:
    """Draw skills.png and widths.png, and return their paths."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    names = list(SKILLS)
    figure, axes = plt.subplots(figsize=(7, 5.2), layout="constrained")
    for offset, label, evaluation in (
        (-0.27, "dense", dense), (0.0, "pruned", pruned), (0.27, "random choice", random),
    ):  # fmt: skip
        axes.barh(
            [i + offset for i in range(len(names))],
            [100 * evaluation.accuracy[s] for s in names],
            height=0.25,
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


def write_page(
    out: Path,
    rows: list[Row],
    block: dict[str, Any],
    plots: list[Path],
    anatomy: Anatomy,
    atlas: str,
) -> Path:
    """Write report.html: one self-contained file, images inside.

    Args:
        plots: skills, widths, networks.
        atlas: address of the atlas's page, relative to this one.
    """
    skills, widths, networks = (
        f'<img alt="{path.stem}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for path in plots
    )
    sentences = [*summary(anatomy), *(sentence(c) for c in anatomy.carriers if c.hurts_it_alone)]
    body = (
        f"<p>{html.escape(headline(block))}</p>",
        _table(("", *COLUMNS), rows),
        f"<p>{html.escape(CONVENTIONS)}</p>",
        skills,
        "<h2>What the networks of the dense model carry</h2>",
        *(f"<p>{html.escape(line)}</p>" for line in sentences),
        _table(HEADER, carrier_rows(anatomy)),
        f"<p>{html.escape(HOW)}</p>",
        networks,
        f'<p><a href="{html.escape(atlas)}">All networks: what moves them, what they raise</a></p>',
        "<h2>Settings of the pruning modifier</h2>",
        _table((), [(key, str(value)) for key, value in block["settings"].items()]),
        widths,
    )
    page = out / "report.html"
    page.write_text(_TEMPLATE.replace("<!--body-->", "\n".join(body), 1))
    return page


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [*([("th", header)] if header else []), *(("td", row) for row in rows)]
    lines = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in cells
    )
    return "<table>" + "\n".join(lines) + "</table>"


def write_json(
    out: Path,
    models: dict[str, Evaluation],
    speeds: list[float],
    block: dict[str, Any],
    anatomy: Anatomy,
) -> dict[str, Any]:
    """Write results.json, and return what it holds.

    Args:
        models: `dense`, `pruned`, `random`.
    """
    results = {
        "tokens_per_second": {"dense": speeds[0], "pruned": speeds[1]},
        **{name: asdict(evaluation) for name, evaluation in models.items()},
        "functional_network": block,
        "networks": asdict(anatomy)
        | {"carried": [carrier.skill for carrier in anatomy.carriers if carrier.carries]},
        "conventions": [CONVENTIONS, HOW],
    }
    text = json.dumps(results, indent=2)
    (out / "results.json").write_text(text + "\n")
    return json.loads(text)


_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>funcnet demo</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: auto; padding: 1rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; background: white; margin: 1rem 0 }
</style>
<h1>Functional-network pruning: the demo</h1>
<!--body-->
</html>
"""
