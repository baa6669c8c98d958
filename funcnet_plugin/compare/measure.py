"""What is measured of a checkpoint, and of the run that made it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.perplexity import perplexities

_MB = 2**20


def measure(checkpoint: str | Path, texts: Mapping[str, Tensor], plan: Comparison) -> dict:
    """Perplexity of each text, the tasks' scores, speed."""
    found = perplexities(checkpoint, dict(texts))
    return {
        "perplexity": found.by_text,
        "tasks": task_scores(checkpoint, plan) if plan.tasks else {},
        "tokens_per_second": found.tokens_per_second,
    }


def task_scores(checkpoint: str | Path, plan: Comparison) -> dict[str, float]:
    """lm-eval's first metric of each task (`acc`, a perplexity), of a group its aggregate.

    Raises:
        FuncnetError: lm-eval does not know a task.
    """
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model="funcnet",
        model_args={"pretrained": str(checkpoint), "dtype": "float32"},
        tasks=list(plan.tasks),
        task_manager=_task_manager(plan),
        limit=plan.limit,
        batch_size=16,
        bootstrap_iters=0,
        log_samples=False,
    )["results"]
    return {name: _first_metric(results[name]) for name in plan.tasks}


def check_tasks(plan: Comparison) -> None:
    """Before the work: are the tasks there?"""
    if not plan.tasks:
        return
    known = set(_task_manager(plan).all_tasks)
    for name in plan.tasks:
        if name not in known:
            raise FuncnetError(
                f"lm-eval knows no task {name!r}; look for its name with lm_eval ls tasks, or give "
                "the directory of your own with --include-path."
            )


def _task_manager(plan: Comparison) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=plan.include_path)


def _first_metric(result: dict[str, Any]) -> float:
    return next(
        float(value)
        for key, value in result.items()
        if key.endswith(",none") and "_stderr" not in key and isinstance(value, int | float)
    )


def _give_back_memory() -> None:
    """What earlier runs freed stays with the process otherwise, and the next one needs no more."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Usage:
    """Time and peak memory of what runs inside a `with`.

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
