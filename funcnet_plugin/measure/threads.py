"""Warns of threads that would have to share cores: they wait for each other at every step."""

from __future__ import annotations

import math
import os
import time
from functools import cache

import psutil
import torch
from loguru import logger


@cache
def warn_of_busy_cores() -> None:
    """Say once, before long work on a CPU, if torch is to use more threads than cores are free."""
    found = too_many_threads(torch.get_num_threads(), _cores(), _busy_elsewhere())
    if found and not torch.cuda.is_available():
        logger.warning(found)


def too_many_threads(threads: int, cores: int, busy: float) -> str | None:
    """Say that there are too many threads, and what to set; None where there are not.

    Args:
        threads: that torch uses.
        cores: that this process may use.
        busy: how many of them others use.
    """
    free = max(1, math.ceil(cores - busy - 0.5))  # half a core is as good as none
    if threads <= free:
        return None
    return (
        f"torch uses {threads} threads where about {free} of {cores} cores can be had, and threads "
        f"that share a core may make a run several times slower; set OMP_NUM_THREADS={free}."
    )


def _cores() -> int:
    find = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(find(0)) if find else os.cpu_count() or 1


def _busy_elsewhere() -> float:
    """Estimate how many of this process's cores others use, by the load of the last minute."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    age = max(time.time() - psutil.Process().create_time(), 1.0)
    # the load forgets by half in 42 seconds, and this process has its part in it
    own = time.process_time() / age * (1.0 - math.exp(-age / 60.0))
    everywhere = os.cpu_count() or 1
    return max(0.0, os.getloadavg()[0] - own) / everywhere * _cores()
