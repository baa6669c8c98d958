"""Times one MLP at many widths: which are fast on this device?"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import theilslopes
from torch import nn
from transformers.activations import ACT2FN

from funcnet_plugin.adapters import bind
from funcnet_plugin.bars import bar
from funcnet_plugin.bench.models import model_on_meta
from funcnet_plugin.bench.results import machine
from funcnet_plugin.cut.alignment import FILE_KEY
from funcnet_plugin.errors import FuncnetError

STEPS = (1, 8, 16, 32, 64, 128, 256)
_MOST = 1.02  # times what widths on the coarsest step take
_BASES = 6  # widths on the coarsest step that others are compared with
_COARSEST = STEPS[-1]
_AT_LEAST = 0.3  # seconds for the repetitions of a width


def bench_widths(
    model: Path, tokens: Sequence[int], repetitions: int, dtype: str, threads: int
) -> dict[str, Any]:
    """Time gate, up and down projection of a model at widths on and off every step.

    Beside each multiple of 256 stand the widths that are 128, 64, 32, 16, 8 and 1 less. Those of
    one step are multiples of it, and of no coarser one. What the multiples of 256 take lies near a
    straight line, and a step's cost is what its widths take relative to that line.

    Args:
        model: checkpoint directory, of which only the config is read.
        tokens: at once, 1 for writing and several hundred for reading a prompt.
        repetitions: of each width; more where they take less than 0.3 seconds together.
        dtype: `auto` for the checkpoint's.
        threads: of the CPU.

    Returns:
        `align`, the smallest step which is as fast as 256, as all coarser ones are; `steps`, for
        each step and number of tokens the cost; `widths`, the seconds of every width.

    Raises:
        FuncnetError: the model is too narrow.
    """
    shapes = model_on_meta(model)
    config, widest = shapes.config, max(bind(shapes, try_mlps=False).widths)
    bases = _bases(widest)
    kind = config.dtype if dtype == "auto" else getattr(torch, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    activation = ACT2FN[getattr(config, "hidden_act", None) or "silu"]
    widths = sorted({base - (step if step < _COARSEST else 0) for base in bases for step in STEPS})
    seconds: dict[int, dict[int, float]] = {}
    for count in tokens:
        works = {
            width: _mlp(config.hidden_size, width, count, kind, device, activation)
            for width in widths
        }
        seconds[count] = _times(works, repetitions, f"widths, {count} tokens at once", device)
    steps = {step: {n: cost(seconds[n], bases, step) for n in tokens} for step in STEPS}
    return {
        FILE_KEY: fastest_step(steps),
        "hidden_size": config.hidden_size,
        "dtype": str(kind).removeprefix("torch."),
        "threads": threads,
        "machine": machine(),
        "steps": {str(s): {str(n): c for n, c in costs.items()} for s, costs in steps.items()},
        "widths": {str(n): {str(w): value for w, value in of.items()} for n, of in seconds.items()},
    }


def cost(seconds: Mapping[int, float], bases: Sequence[int], step: int) -> float:
    """Say how many times as long widths of a step take as the line of the coarsest step.

    Args:
        seconds: of each width.
        bases: widths on the coarsest step; two at least.
        step: one of `STEPS`.
    """
    # of medians, so that a width which something else slowed does not turn it
    slope, offset, *_ = theilslopes([seconds[base] for base in bases], bases)

    def above(off: int) -> float:
        widths = [base - off for base in bases]
        return statistics.median(seconds[w] / (slope * w + offset) for w in widths)

    return float(above(step) / above(0)) if step < _COARSEST else 1.0


def fastest_step(steps: Mapping[int, Mapping[int, float]]) -> int:
    """Find the smallest step that costs no more than 2% above the coarsest, nor do coarser ones.

    Args:
        steps: step -> number of tokens -> cost.
    """
    found = _COARSEST
    for step in sorted(steps, reverse=True):
        if max(steps[step].values()) > _MOST:
            break
        found = step
    return found


def write_widths(found: Mapping[str, Any], out: Path) -> Path:
    """Write widths.json into a directory, whole or not at all, and give its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "widths.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(part, path)
    return path


def _bases(widest: int) -> list[int]:
    """Choose multiples of the coarsest step, from half the width up."""
    least = max(_COARSEST, widest // 2)
    bases = [w for w in range(_COARSEST, widest + 1, _COARSEST) if w >= least]
    if len(bases) < 3:
        raise FuncnetError(
            f"an MLP of width {widest} has too few multiples of {_COARSEST} to compare others "
            "with; take a model of width 1024 at least."
        )
    chosen = np.linspace(0, len(bases) - 1, min(_BASES, len(bases))).round().astype(int)
    return [bases[i] for i in chosen]


def _mlp(
    hidden: int,
    width: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[], object]:
    make = {"bias": False, "dtype": dtype, "device": device}
    gate, up = nn.Linear(hidden, width, **make), nn.Linear(hidden, width, **make)
    down = nn.Linear(width, hidden, **make)
    states = torch.randn(tokens, hidden, dtype=dtype, device=device)
    return lambda: down(activation(gate(states)) * up(states))


@torch.no_grad()
def _times(
    works: Mapping[int, Callable[[], object]], repetitions: int, title: str, device: torch.device
) -> dict[int, float]:
    """Time all widths in turns.

    Returns:
        lower quartiles in seconds: what a kernel takes while nothing else is in its way.
    """
    found: dict[int, list[float]] = {width: [] for width in works}
    start = time.perf_counter()
    for width in works:
        works[width]()
    _wait(device)
    taken = (time.perf_counter() - start) / len(works)
    repetitions = max(repetitions, math.ceil(_AT_LEAST / taken))
    for number in bar(range(repetitions + 2), title, "round"):
        order = list(works) if number % 2 == 0 else list(reversed(works))
        for width in order:
            _wait(device)
            start = time.perf_counter()
            works[width]()
            _wait(device)
            if number >= 2:  # the first two warm up
                found[width].append(time.perf_counter() - start)
    return {width: float(np.quantile(times, 0.25)) for width, times in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
