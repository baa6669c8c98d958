"""Threads that would have to share cores are said before long work."""

import os

import pytest
import torch

from funcnet_plugin.measure import threads
from tests.hosting import logged


@pytest.mark.parametrize(
    ("asked", "cores", "busy", "free"),
    [(2, 2, 2.0, 1), (2, 2, 0.9, 1), (8, 8, 4.0, 4), (4, 2, 0.0, 2)],
)
def test_more_threads_than_free_cores_are_too_many(asked, cores, busy, free):
    found = threads.too_many_threads(asked, cores, busy)
    assert f"OMP_NUM_THREADS={free}." in found


@pytest.mark.parametrize(("asked", "cores", "busy"), [(1, 2, 5.0), (2, 2, 0.3), (4, 8, 4.0)])
def test_as_many_as_are_free_are_not(asked, cores, busy):
    assert threads.too_many_threads(asked, cores, busy) is None


def test_it_is_said_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    threads.warn_of_busy_cores.cache_clear()
    with logged() as lines:
        threads.warn_of_busy_cores()
        threads.warn_of_busy_cores()
    assert len([line for line in lines if "OMP_NUM_THREADS" in line]) == 1


def test_a_share_of_the_machine_is_as_busy_as_all_of_it(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0), raising=False)
    assert threads._busy_elsewhere() > 20
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    assert threads._busy_elsewhere() == 0.0
