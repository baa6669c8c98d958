"""Chooses networks by what a study found them to do."""

from __future__ import annotations

from collections.abc import Mapping

from funcnet_plugin.errors import AtlasError
from funcnet_plugin.lesions.effects import Effect

HURTING = "hurting"


def hurting(found: Mapping[str, Mapping[str, Effect]], text: str) -> list[str]:
    """Find the networks whose lesion hurts one task most and the others least.

    They are ranked by what the task loses, less the most that any other loses. Questions that were
    chosen by tell nothing of how specific the chosen ones are: measure them on others.

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
    asked = f"task/{task}"
    if asked not in known:
        tasks = ", ".join(name.removeprefix("task/") for name in known) or "none"
        raise AtlasError(
            f"the study that {text} chooses by has no task {task!r}, but {tasks}; measure every "
            "network by itself on it first."
        )

    def specific(name: str) -> float:
        losses = {other: -found[name][other].change for other in known}
        return losses.pop(asked) - max(0.0, *losses.values(), 0.0)

    ranked = sorted(found, key=specific, reverse=True)
    chosen = [name for name in ranked[: int(number)] if specific(name) > 0.0]
    if len(chosen) < int(number):
        raise AtlasError(
            f"{text} asks for {number} networks, and only {len(chosen)} hurt {task} more than all "
            "other tasks; ask for fewer."
        )
    return chosen
