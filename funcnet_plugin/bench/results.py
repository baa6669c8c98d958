"""Puts what was timed into one document, which tables and plots are made from."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from funcnet_plugin.bench.load import Load, Timing
from funcnet_plugin.bench.models import Model
from funcnet_plugin.bench.plan import Bench, Ready
from funcnet_plugin.bench.summary import Interval, speed_ups, speeds
from funcnet_plugin.evaluation.rows import versions

SCHEMA = 1  # raised when a key changes its meaning or goes
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Measured:
    """Holds what was found of one model in one backend at one load.

    Attributes:
        facts: `peak_memory_bytes`, `weight_bytes`, `disk_bytes`.
        refused: why the backend does not take the model; there is nothing else then.
    """

    backend: str
    model: str
    load: Load | None = None
    timings: tuple[Timing, ...] = ()
    facts: Mapping[str, int | None] = field(default_factory=dict)
    refused: str | None = None


def document(
    plan: Bench,
    done: Ready,
    found: Sequence[Measured],
    quality: Mapping[str, Mapping[str, float]],
    where: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the document that bench.json holds; docs/serving.md explains its keys.

    Args:
        done: with the twins among the models.
        quality: perplexity by model and text.
        where: see `machine`.
    """
    return {
        "schema": SCHEMA,
        "machine": dict(where),
        "versions": versions() | {r.name: version for r, version in done.runtimes.items()},
        "settings": {
            "repetitions": plan.repetitions,
            "warm_up": plan.warm_up,
            "dtype": plan.dtype,
            "threads": plan.threads,
        },
        "models": [_model(model, quality.get(model.name)) for model in done.models],
        "rows": [_row(one, found, done.models) for one in found],
    }


def machine() -> dict[str, Any]:
    """Describe where it runs, and how busy that was with other things."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _model(model: Model, perplexity: Mapping[str, float] | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "widths": list(model.shape.widths),
        "twin_of": model.twin_of,
        "aligned": model.aligned,
        "perplexity": None if perplexity is None else dict(perplexity),
    }


def _row(one: Measured, found: Sequence[Measured], models: Sequence[Model]) -> dict[str, Any]:
    key = {"backend": one.backend, "model": one.model}
    if one.load is None:
        return key | {"refused": one.refused}
    beside = {o.model: o for o in found if (o.backend, o.load) == (one.backend, one.load)}
    shapes = {model.name: model.shape for model in models}
    twins = [m.name for m in models if m.twin_of == one.model and m.name in beside]
    base = models[0].name
    work = {
        phase: {name: getattr(shapes[name], phase)(one.load) for name in {one.model, base, *twins}}
        for phase in PHASES
    }

    def against(other: str, phase: str) -> dict[str, float | None] | None:
        """Compare with another model: how many times as fast this one is."""
        interval = speed_ups(beside[other].timings, one.timings)[phase]
        ideal = work[phase][other] / work[phase][one.model]
        return _ratio(interval, ideal)

    compared = base in beside and one.model != base
    return {
        **key,
        "load": asdict(one.load),
        "repetitions": len(one.timings),
        **speeds(one.timings, one.load),
        **one.facts,
        "multiply_adds": {phase: work[phase][one.model] for phase in PHASES},
        "removed": {phase: 1 - work[phase][one.model] / work[phase][base] for phase in PHASES},
        "speed_up": {phase: against(base, phase) for phase in PHASES} if compared else None,
        "against_twins": {
            twin: {phase: against(twin, phase) for phase in PHASES} for twin in twins
        },
    }


def _ratio(interval: Interval | None, ideal: float) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {
        "ideal": ideal,
        "measured": interval.median,
        "low": interval.low,
        "high": interval.high,
    }
