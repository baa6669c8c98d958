"""Chooses networks by what a study found them to do."""

from __future__ import annotations

from collections.abc import Mapping

from funcnet_plugin.errors import AtlasError
from funcnet_plugin.lesions.effects import Effect

HURTING = "hurting"


def hurting(found: Mapping[str, Mapping[str, Effect]], text: str) -> list[str]:
    """Find the networks whose lesion hurts one task most and the others least.

    They are ranked by `specificity`. Questions that were chosen by tell nothing of how specific the
    chosen ones are: measure them on others.

    Args:
        found: effects of single networks, see `effects.effects`.
        text: `hurting:TASK:N`.

    Raises:
        AtlasError: no such task was measured, or fewer than N networks hurt it.
    """
    kind, _, rest = text.partition(":")
    task, _, number = rest.rpartition(":")
    if kind != HURTING or not task or not number.isdecimal() or int(number) == 0:
        raise AtlasError(f"{text!r} chooses no networks; write {HURTING}:TASK:N.")
    known = sorted({name for of in found.values() for name in of if name.startswith("task/")})
    if f"task/{task}" not in known:
        tasks = ", ".join(name.removeprefix("task/") for name in known) or "none"
        raise AtlasError(
            f"the study that {text} chooses by has no task {task!r}, but {tasks}; measure every "
            "network by itself on it first."
        )
    chosen = specific_to(found, task)[: int(number)]
    if len(chosen) < int(number):
        raise AtlasError(
            f"{text} asks for {number} networks, and only {len(chosen)} hurt {task} more than all "
            "other tasks; ask for fewer."
        )
    return chosen


def specific_to(found: Mapping[str, Mapping[str, Effect]], task: str) -> list[str]:
    """List the lesions that hurt one task more than any other, the most specific first."""
    known = {label: specificity(of, task) for label, of in found.items()}
    ranked = sorted(known, key=known.__getitem__, reverse=True)
    return [label for label in ranked if known[label] > 0.0]


def specificity(of: Mapping[str, Effect], task: str) -> float:
    """Tell what one task loses by a lesion, less the most that any other loses.

    Args:
        of: `task/NAME` -> effect.
    """
    losses = {name: -e.change for name, e in of.items() if name.startswith("task/")}
    return losses.pop(f"task/{task}") - max(0.0, *losses.values(), 0.0)
