"""Says before a run what its stages take: memory, and about how much time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from funcnet_plugin.run.clock import Spent
from funcnet_plugin.run.stages import Stage
from funcnet_plugin.screen import duration, size, table

_SHORT = 0.05  # seconds below which a stage was passed over
_BESIDES = "GB at the stage's peak; Python and its libraries take about 1 GB more"


def plan_table(stages: Sequence[Stage], seconds: Mapping[str, float], *, gpu: bool) -> str:
    """Write the plan of a run, a line for each stage.

    Args:
        stages: with their memory.
        seconds: name of the stage -> estimated time; what is not known is left open.
        gpu: whether there is one.
    """
    rows = [
        [
            stage.name,
            size(stage.host),
            *([size(stage.gpu)] if gpu else []),
            f"about {duration(seconds[stage.name])}" if stage.name in seconds else "",
            stage.mostly,
        ]
        for stage in stages
    ]
    if seconds:
        total = f"about {duration(sum(seconds.values()))}"
        most = [size(max(s.host for s in stages))] + (
            [size(max(s.gpu for s in stages))] if gpu else []
        )
        rows.append(["in all", *most, total, ""])
    heads = ["stage", "memory", *(["GPU"] if gpu else []), "time", "mostly"]
    return f"{table(heads, rows)}\n({_BESIDES})"


def spent_table(spent: Mapping[str, Spent]) -> str:
    """Write what the stages of a run took, a line for each."""
    spent = {name: found for name, found in spent.items() if found.seconds >= _SHORT}
    gpu = any(found.gpu for found in spent.values())
    rows = [
        [
            name,
            duration(found.seconds),
            *([size(found.gpu)] if gpu else []),
            size(found.host),
        ]
        for name, found in spent.items()
    ]
    heads = ["stage", "time", *(["GPU peak so far"] if gpu else []), "memory peak so far, GB"]
    return table(heads, rows)
