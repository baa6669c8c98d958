"""Says of repeated timings what is typical, what is rare, and how sure a ratio is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from funcnet_plugin.bench.load import Load, Timing

_SURE = 0.95


@dataclass(frozen=True)
class Interval:
    """Holds a median, and between which values that of endless repetitions lies, 95% sure.

    Attributes:
        low, high: None where there are too few values to say (less than six).
    """

    median: float
    low: float | None
    high: float | None


def median_interval(values: Sequence[float]) -> Interval:
    """Find the median and its interval by ranks, whatever the distribution.

    The number of values below the true median is binomial, so the k-th smallest and the k-th
    largest hold it between them with a probability that depends on k alone.
    """
    ordered = sorted(values)
    n, below, rank = len(ordered), 0.0, 0
    while rank < n // 2:
        below += math.comb(n, rank) / 2**n
        if 2 * below > 1 - _SURE:
            break
        rank += 1
    median = float(np.median(ordered))
    return (
        Interval(median, ordered[rank - 1], ordered[-rank])
        if rank
        else Interval(median, None, None)
    )


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Give the median and the 99th percentile, interpolated; of 30 values that is the largest."""
    p50, p99 = np.percentile(seconds, (50, 99))
    return {"p50": float(p50), "p99": float(p99)}


def speeds(timings: Sequence[Timing], load: Load) -> dict[str, object]:
    """Say what the repetitions of one model took, in seconds and in tokens per second.

    Returns:
        `time_to_first_token`, `time_per_token` (of a repetition: the mean of the tokens behind the
        first), `prefill_tokens_per_second`, `decode_tokens_per_second`, `tokens_per_second` (all
        that is written, the prompt's time counted); the last three from medians, of all texts at
        once. None for what the backend does not do.
    """
    first = spread([timing.first for timing in timings])
    found: dict[str, object] = {
        "time_to_first_token": first,
        "prefill_tokens_per_second": load.concurrency * load.prompt / first["p50"],
        "time_per_token": None,
        "decode_tokens_per_second": None,
        "tokens_per_second": None,
    }
    rests = [timing.rest for timing in timings if timing.rest is not None]
    if rests:
        each = spread([rest / (load.written - 1) for rest in rests])
        whole = np.median([timing.first + (timing.rest or 0.0) for timing in timings])
        found["time_per_token"] = each
        found["decode_tokens_per_second"] = load.concurrency / each["p50"]
        found["tokens_per_second"] = float(load.concurrency * load.written / whole)
    return found


def speed_ups(base: Sequence[Timing], other: Sequence[Timing]) -> dict[str, Interval | None]:
    """Say how many times as fast as `base` another model is, round by round.

    Args:
        base, other: timings of the same rounds, so what slowed a round slowed both.

    Returns:
        `prefill` and `decode`.
    """
    first = [b.first / o.first for b, o in zip(base, other, strict=True)]
    rest = [
        b.rest / o.rest
        for b, o in zip(base, other, strict=True)
        if b.rest is not None and o.rest is not None
    ]
    return {
        "prefill": median_interval(first),
        "decode": median_interval(rest) if rest else None,
    }
