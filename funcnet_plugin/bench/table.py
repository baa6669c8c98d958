"""Writes the document of a bench as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from funcnet_plugin.bench.results import PHASES

Row = Mapping[str, Any]
_MB = 2**20
_SPEED = ("model", "first token, ms", "per token, ms", "prefill, tokens/s", "decode, tokens/s",
          "all, tokens/s", "memory, MB", "weights, MB", "disk, MB")  # fmt: skip
_GAIN = ("model", "phase", "operations removed", "ideal", "measured", "95% sure")


def markdown(found: Mapping[str, Any]) -> str:
    """Write all tables as Markdown.

    Args:
        found: see `results.document`.
    """
    rows = found["rows"]
    text = [_head(found)]
    groups = dict.fromkeys(
        (row["backend"], tuple(row["load"].values())) for row in rows if "load" in row
    )
    for backend, load in groups:
        of = [
            row
            for row in rows
            if "load" in row and (row["backend"], tuple(row["load"].values())) == (backend, load)
        ]
        prompt, written, at_once = load
        text.append(
            f"## {backend}: {prompt} tokens read, {written} written"
            + (f", {at_once} texts at once" if at_once > 1 else "")
        )
        text.append(_table(_SPEED, [_speed(row) for row in of]))
        gains = [line for row in of for line in _gains(row)]
        if gains:
            text.append(_table(_GAIN, gains))
        text += _listed([sentence for row in of for sentence in twin_sentences(row)])
    refused = [row for row in rows if "refused" in row]
    text += _listed([f"{row['backend']}, {row['model']}: {row['refused']}" for row in refused])
    perplexities = [
        (model["name"], *(f"{value:.3f}" for value in model["perplexity"].values()))
        for model in found["models"]
        if model["perplexity"]
    ]
    if perplexities:
        names = next(m["perplexity"] for m in found["models"] if m["perplexity"])
        heading = "## Perplexity, of the checkpoint in float32"
        text += [heading, _table(("model", *names), perplexities)]
    return "\n\n".join(text) + "\n"


def _head(found: Mapping[str, Any]) -> str:
    settings, where = found["settings"], found["machine"]
    on = where["gpu"] or where["cpu"]
    load = ", ".join(map(str, where["load_average"]))
    return (
        f"{on}, {settings['threads']} of {where['cores']} cores; {settings['repetitions']} "
        f"repetitions of each after {settings['warm_up']}, models in turns. Times are the median "
        f"and the 99th percentile. Load of the machine at the end (1, 5, 15 minutes): {load}."
    )


def _speed(row: Row) -> list[str]:
    return [
        row["model"],
        _milliseconds(row["time_to_first_token"]),
        _milliseconds(row["time_per_token"]),
        *(_number(row[f"{k}tokens_per_second"]) for k in ("prefill_", "decode_", "")),
        *(_megabytes(row[f"{k}_bytes"]) for k in ("peak_memory", "weight", "disk")),
    ]


def _gains(row: Row) -> list[list[str]]:
    ratios = row["speed_up"] or {}
    return [
        [row["model"], phase, f"{row['removed'][phase]:.1%}", f"{ratio['ideal']:.2f}",
         f"{ratio['measured']:.2f}", _between(ratio)]
        for phase, ratio in ratios.items()
        if ratio
    ]  # fmt: skip


def twin_sentences(row: Row) -> list[str]:
    """Say what a model's widths give beside those of its aligned twins."""
    return [
        f"{row['model']}, {phase}: {_against_twin(ratios[phase], twin)}."
        for twin, ratios in row["against_twins"].items()
        for phase in PHASES
        if ratios[phase]
    ]


def _against_twin(ratio: Mapping[str, float | None], twin: str) -> str:
    """Compare with a twin, which has as many neurons or more."""
    measured, low, high = ratio["measured"], ratio["low"], ratio["high"]
    times = f"{measured:.2f} times as fast as {twin}"
    if low is None or high is None:
        return f"{times}, too few repetitions to be sure"
    sure = f"{times}, 95% sure of {low:.2f} to {high:.2f}"
    if high < 1:
        return f"{sure}: the odd widths cost more time than the neurons they leave out save"
    if low > 1:
        return f"{sure}, {ratio['ideal']:.2f} by operations: the narrower widths gain"
    return f"{sure}: the narrower widths gain nothing that shows"


def _listed(sentences: Sequence[str]) -> list[str]:
    return ["\n".join(f"* {sentence}" for sentence in sentences)] if sentences else []


def _between(ratio: Mapping[str, float | None]) -> str:
    if ratio["low"] is None:
        return "-"
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def _milliseconds(times: Mapping[str, float] | None) -> str:
    return "-" if times is None else f"{1e3 * times['p50']:.2f}, {1e3 * times['p99']:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / _MB:,.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
