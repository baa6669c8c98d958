"""Compares what lesions do with what random neurons of the same number do."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scipy import stats

from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import AtlasError

FILE = "effects.json"
_LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """Holds what one lesion did to one measure.

    Attributes:
        value: with the lesion.
        change: against the dense model: a difference of a score, or the logarithm of a ratio of
            perplexities.
        control: the same of random neurons, mean over draws; None without any.
        low, high: where the change of one more draw would lie, 95 times in 100 (Student's t); None
            with fewer than two draws, or where all draws did the same: a score of few questions has
            steps, and says nothing of what lies between them.
    """

    value: float
    change: float
    control: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def beyond_chance(self) -> bool:
        """Tell whether random neurons would hardly do as much."""
        return self.low is not None and not self.low <= self.change <= self.high


def effect(kind: str, dense: float, with_lesion: float, with_controls: Sequence[float]) -> Effect:
    """Compare one measure.

    Args:
        kind: `tasks`, whose scores are subtracted, or `texts`, perplexities that are divided.
    """

    def change(value: float) -> float:
        return math.log(value / dense) if kind == "texts" else value - dense

    controls = [change(value) for value in with_controls]
    if not controls:
        return Effect(with_lesion, change(with_lesion))
    mean = statistics.mean(controls)
    if len(set(controls)) < 2:
        return Effect(with_lesion, change(with_lesion), mean)
    n = len(controls)
    width = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1)) * math.sqrt(1 + 1 / n)
    width *= statistics.stdev(controls)
    return Effect(with_lesion, change(with_lesion), mean, mean - width, mean + width)


def effects(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Effect]]:
    """Compare every lesion of a study with its controls.

    Args:
        rows: of a study, the dense model first, see `lesioning.lesion_study`.

    Returns:
        label of a lesion -> `text/NAME` or `task/NAME` -> what it did.
    """
    dense = rows[0]
    found: dict[str, dict[str, Effect]] = {}
    for row in rows:
        if row["lesion"] is None or row["draw"] is not None:
            continue
        controls = [r for r in rows if r["lesion"] == row["lesion"] and r["draw"] is not None]
        found[row["lesion"]] = {
            f"{kind.removesuffix('s')}/{name}": effect(
                kind, dense[kind][name], value, [control[kind][name] for control in controls]
            )
            for kind in ("texts", "tasks")
            for name, value in row[kind].items()
        }
    return found


def write_effects(directory: Path, found: Mapping[str, Mapping[str, Effect]]) -> None:
    """Write what a study found, for people and for `read_effects`.

    Args:
        directory: of the study.
        found: see `effects`.
    """
    content = as_plain(found)
    with saying_full(directory):
        (directory / FILE).write_text(json.dumps(content, indent=1) + "\n")


def as_plain(found: Mapping[str, Mapping[str, Effect]]) -> dict[str, Any]:
    """Give plain values of effects."""
    return {
        label: {name: asdict(e) | {"beyond_chance": e.beyond_chance} for name, e in of.items()}
        for label, of in found.items()
    }


def read_effects(directory: Path) -> dict[str, dict[str, Effect]]:
    """Read what a study found.

    Raises:
        AtlasError: there is none, or it is not of this form.
    """
    known = [field.name for field in fields(Effect)]
    try:
        content = json.loads((directory / FILE).read_text())
        return {
            label: {name: Effect(**{k: e[k] for k in known}) for name, e in of.items()}
            for label, of in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtlasError(
            f"{directory} holds no study of lesions ({error}); make one with funcnet lesion."
        ) from error


def dissociations(
    found: Mapping[str, Mapping[str, Effect]], hurts: float, spares: float
) -> list[tuple[str, str, str, str]]:
    """Find double dissociations: each of two lesions hurts what the other spares.

    Args:
        found: see `effects`; scores of tasks only are looked at.
        hurts: smallest loss of a task's score that counts as hurt, beyond random neurons'.
        spares: largest loss that counts as spared.

    Returns:
        lesion, the task that it hurts, other lesion, the task that this one hurts.
    """

    def loss(lesion: str, task: str) -> float:
        return -found[lesion][task].change

    def hurt(lesion: str, task: str) -> bool:
        e = found[lesion][task]
        by_chance = e.control if e.low is None else e.low
        return loss(lesion, task) >= hurts and (by_chance is None or e.change < by_chance)

    tasks = sorted({t for of in found.values() for t in of if t.startswith("task/")})
    specific = [
        (lesion, task, other)
        for lesion in found
        for task in tasks
        for other in tasks
        if other != task and hurt(lesion, task) and loss(lesion, other) <= spares
    ]
    return [
        (a, s, b, t)
        for a, s, t in specific
        for b, t2, s2 in specific
        if a < b and t2 == t and s2 == s
    ]
