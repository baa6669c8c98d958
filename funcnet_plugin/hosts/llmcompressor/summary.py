"""Says at the end of `oneshot` what was reached, where it is, what it took and what comes next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from funcnet_plugin.run import stages
from funcnet_plugin.run.clock import Clock
from funcnet_plugin.run.forecast import spent_table
from funcnet_plugin.screen import span

# Where the user will find what is written to another place first.
_place: ContextVar[Path | None] = ContextVar("place", default=None)


@dataclass(frozen=True)
class _Ended:
    block: Mapping[str, Any]
    clock: Clock


# Of the call that is going on; llm-compressor's session is global as well.
_ended: list[_Ended] = []


@contextmanager
def going_to(place: Path) -> Iterator[None]:
    """Have the summary name another place than `oneshot`'s output_dir."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def ended(block: Mapping[str, Any], clock: Clock) -> None:
    """Remember a run that has ended well.

    Args:
        block: `functional_network` of config.json.
        clock: of the run.
    """
    _ended.append(_Ended(block, clock))


@contextmanager
def summing_up(out: Path | None) -> Iterator[Saving]:
    """Log a summary of what ended meanwhile.

    Args:
        out: where the model is saved; None where it is not.
    """
    _ended.clear()
    saving = Saving()
    yield saving
    for one in _ended:
        seconds = saving.seconds
        if out is not None and seconds is not None:
            one.clock.add(stages.SAVING, seconds)
        logger.info(_summary(one, _place.get() or out))
    _ended.clear()


class Saving:
    """Measures the time from the end of the modifiers to the end of the call."""

    def __init__(self) -> None:
        self._start: float | None = None

    def begins(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float | None:
        """Give the time since it began; None if it did not."""
        return None if self._start is None else time.perf_counter() - self._start


def _summary(one: _Ended, out: Path | None) -> str:
    block = one.block
    widths = set(block["kept_widths"])
    left = f"widths {span(widths)}"
    if "kept_key_value_heads" in block:
        left += f", key-value heads {block['kept_key_value_heads']}"
    lines = [
        f"{block['parameters_before']:,} -> {block['parameters_after']:,} parameters, "
        f"{block['pruning_ratio_reached']:.4f} removed (asked: "
        f"{block['pruning_ratio_requested']:g}), {left}",
        spent_table(one.clock.spent),
    ]
    if out is not None:
        lines.append(f"the model is in {out}; what next:")
        lines.append(f"  lm_eval --model funcnet --model_args pretrained={out} --tasks wikitext")
        if len(widths) > 1:
            lines.append(f"  funcnet export {out} --out {out}-padded   (for stock transformers)")
    return "\n".join(lines)
