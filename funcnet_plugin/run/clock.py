"""Measures the stages of a run while it goes: seconds, and the most memory up to their end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from funcnet_plugin.run import stages


@dataclass
class Spent:
    """Holds what a stage took.

    Attributes:
        seconds: without those of other stages within it.
        host: most resident bytes that the process had up to its end, all of Python included.
        gpu: most bytes that torch had on the current GPU up to its end; 0 without one.
    """

    seconds: float = 0.0
    host: int = 0
    gpu: int = 0


class Clock:
    """Adds up what the stages of one run take; stages may stand within others.

    Peaks are those of the process so far: to begin them anew would disturb others who measure.
    """

    def __init__(self) -> None:
        self._spent: dict[str, Spent] = {}
        self._within: list[str] = []
        self._last = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens meanwhile as a stage's.

        Args:
            name: one of `stages.NAMES`.
        """
        self._pass_on()
        self._within.append(name)
        try:
            yield
        finally:
            self._pass_on()
            self._within.pop()

    def add(self, name: str, seconds: float) -> None:
        """Count a stage that ends now and was measured elsewhere."""
        spent = self._spent.setdefault(name, Spent())
        spent.seconds += seconds
        spent.host, spent.gpu = peak_bytes()

    def _pass_on(self) -> None:
        """Give the time since the last call to the stage that is going on."""
        now = time.perf_counter()
        if self._within:
            spent = self._spent.setdefault(self._within[-1], Spent())
            spent.seconds += now - self._last
            spent.host, spent.gpu = peak_bytes()
        self._last = now

    @property
    def spent(self) -> dict[str, Spent]:
        """Give what was measured, in the order of the stages."""
        return {name: self._spent[name] for name in stages.NAMES if name in self._spent}


def peak_bytes() -> tuple[int, int]:
    """Give the most memory that this process had: of the host, and of the current GPU."""
    return _host_peak(), torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def _host_peak() -> int:
    """Give the most resident bytes that this process had.

    Linux counts what the parent had into `ru_maxrss`, so its own figure is read where there is one.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # not everywhere, and needed for this only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
