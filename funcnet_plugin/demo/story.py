"""Says what the networks of the demo model carry: sentences, a table and a plot."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from funcnet_plugin.demo.networks import (
    CHANCE,
    CHOSEN_ON,
    DRAWS,
    HALF,
    HURT,
    SHARE,
    SPARED,
    TOLD_ON,
    Anatomy,
    Carrier,
)
from funcnet_plugin.demo.skills import SKILLS

HEADER = (
    "skill", "networks", "neurons", "dense", "without them", "random neurons", "most of another"
)  # fmt: skip
HOW = (
    "A network is silenced by setting the activity of its neurons to 0 while the model runs. For "
    f"each skill the networks that hurt it most and the others least were chosen on {CHOSEN_ON} "
    f"questions; the figures are of {TOLD_ON} others. Beside them stand as many random neurons of "
    f"the same layers, mean of {DRAWS} draws. Networks carry a skill if they take at least "
    f"{HALF:.0%} of its distance to chance ({CHANCE:.0%}) and {100 * SPARED:.0f} points of any "
    f"other at most, and random neurons take less than {100 * SPARED:.0f} of any. Where that holds "
    f"but for the half, and {100 * HURT:.0f} points are taken, a sentence says it."
)


def sentence(carrier: Carrier) -> str:
    """Tell what one skill's networks do."""
    own = carrier.effects[carrier.skill]
    other, loss = carrier.worst_other
    return (
        f"{_title(carrier.skill)}: without {_names(carrier)} ({carrier.neurons} neurons, "
        f"{carrier.share:.1%}) the model has {own.value:.0%} right instead of "
        f"{own.value - own.change:.0%}, chance is {CHANCE:.0%}; no other skill loses more than "
        f"{100 * max(0.0, loss):.0f} points ({_title(other)}), and as many random neurons take "
        f"{_points(own.control)} from it."
    )


def summary(anatomy: Anatomy) -> list[str]:
    """Tell how many skills are carried by networks of their own, and how few neurons are enough."""
    carried = [c for c in anatomy.carriers if c.carries]
    named = ", ".join(_title(c.skill) for c in carried)
    lines = [
        f"{len(carried)} of {len(SKILLS)} skills {'has' if len(carried) == 1 else 'have'} networks "
        f"of {'its' if len(carried) == 1 else 'their'} own" + (f": {named}." if carried else ".")
    ]
    kept = anatomy.kept
    if kept is None:
        lines.append(
            f"All {anatomy.networks} networks together, the other neurons silent, do not keep "
            f"{SHARE:.0%} of the skills."
        )
    else:
        dense = kept.mean.value - kept.mean.change
        lines.append(
            f"The {kept.networks} networks of most variance, {kept.neurons} of {anatomy.neurons} "
            f"neurons ({kept.share:.0%}), keep {kept.mean.value:.1%} of all questions right where "
            f"all other neurons are silent, instead of {dense:.1%}; as many random neurons keep "
            f"{dense + (kept.mean.control or 0.0):.1%}."
        )
    return lines


def carrier_rows(anatomy: Anatomy) -> list[tuple[str, ...]]:
    """Format what was chosen for each skill, see HEADER."""
    rows = []
    for skill in SKILLS:
        carrier = next((c for c in anatomy.carriers if c.skill == skill), None)
        if carrier is None:
            dense = f"{anatomy.dense[skill]:.1%}"
            rows.append((_title(skill), "none hurts it most", "", dense, "", "", ""))
            continue
        own = carrier.effects[skill]
        other, loss = carrier.worst_other
        rows.append(
            (
                f"{_title(skill)}{' *' if carrier.carries else ''}",
                " + ".join(carrier.networks),
                f"{carrier.neurons} ({carrier.share:.1%})",
                f"{own.value - own.change:.1%}",
                f"{own.value:.1%}",
                f"{own.value - own.change + (own.control or 0.0):.1%}",
                f"{-100 * loss:+.1f}, {_title(other)}",
            )
        )
    return rows


def carrier_table(anatomy: Anatomy) -> Table:
    table = Table(caption="* networks of its own")
    for i, column in enumerate(HEADER):
        table.add_column(column, justify="left" if i < 2 else "right", overflow="fold")
    for row in carrier_rows(anatomy):
        table.add_row(*row)
    return table


def draw_networks(path: Path, anatomy: Anatomy) -> Path:
    """Draw what every lesion takes from every skill, beside random neurons; returns the path."""
    from matplotlib import pyplot as plt

    if not anatomy.carriers:
        figure, axes = plt.subplots(figsize=(9, 1), layout="constrained")
        axes.axis("off")
        axes.text(0.5, 0.5, "no networks hurt one skill more than all others", ha="center")
        figure.savefig(path, dpi=130)
        plt.close(figure)
        return path
    titles = [_title(skill) for skill in SKILLS]
    labels = [f"{_title(c.skill)}'s networks" for c in anatomy.carriers]
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
    for axes, title, random in zip(
        panels, ("without these networks", "without random neurons"), (False, True), strict=True
    ):
        lost = [
            [-100 * ((e.control or 0.0) if random else e.change) for e in c.effects.values()]
            for c in anatomy.carriers
        ]
        image = axes.imshow(lost, vmin=0, vmax=75, cmap="Reds", aspect="auto")
        axes.set(title=title)
        axes.set_xticks(range(len(titles)), titles, rotation=60, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        for y, row in enumerate(lost):
            for x, value in enumerate(row):
                colour = "white" if value > 40 else "black"
                axes.text(
                    x, y, str(round(value)), ha="center", va="center", color=colour, fontsize=8
                )
    figure.colorbar(image, ax=panels, label="points lost")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _title(skill: str) -> str:
    return SKILLS[skill].title


def _names(carrier: Carrier) -> str:
    *first, last = carrier.networks
    return f"{', '.join(first)} and {last}" if first else last


def _points(control: float | None) -> str:
    return f"{0.0 - round(100 * (control or 0.0), 1):.1f}"  # 0.0, and not -0.0
