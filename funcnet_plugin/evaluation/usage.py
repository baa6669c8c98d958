"""Measures what work takes of time and memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time

import psutil
import torch

_MB = 2**20


def _give_back_memory() -> None:
    """Give back what earlier runs freed: it would hide what the next one needs."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Usage:
    """Measures time and peak memory of what runs inside a `with`.

    Attributes:
        seconds: wall time.
        peak_mb: of the process's resident memory, above what it held before, looked at every 10 ms;
            with CUDA of what torch allocated there.
    """

    def __enter__(self) -> Usage:
        self.seconds = self.peak_mb = 0.0
        _give_back_memory()
        self._process, self._stop = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            held = self._process.memory_info().rss - self._before
            self.peak_mb = max(self.peak_mb, held / _MB)

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._watcher.join()
        if torch.cuda.is_available():
            self.peak_mb = torch.cuda.max_memory_allocated() / _MB
