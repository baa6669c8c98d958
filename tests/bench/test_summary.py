"""Statistics of timings, of which the right values are known."""

import math

import numpy as np
import pytest

from funcnet_plugin.bench.load import Load, Timing
from funcnet_plugin.bench.rounds import in_turns, measure, rounds_of
from funcnet_plugin.bench.summary import Interval, median_interval, speed_ups, speeds, spread


def test_the_interval_of_a_median_is_that_of_the_tables():
    # 95% by the binomial distribution: the 10th smallest and the 10th largest of 30
    assert median_interval(list(range(30, 0, -1))) == Interval(15.5, 10, 21)
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == Interval(3.5, 1.0, 6.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == Interval(3.0, None, None)


@pytest.mark.parametrize("n", [6, 9, 30, 101])
def test_the_interval_holds_the_median_as_often_as_it_says(n):
    """The chance that the true median lies outside is known from the ranks alone."""
    found = median_interval(list(range(1, n + 1)))
    rank = found.low
    assert found.high == n + 1 - rank

    def outside(rank):
        return 2 * sum(math.comb(n, k) for k in range(int(rank))) / 2**n

    assert outside(rank) <= 0.05 < outside(rank + 1)


def test_percentiles_are_interpolated():
    assert spread(list(map(float, range(101)))) == {"p50": 50.0, "p99": 99.0}


def test_speeds_are_of_all_texts_at_once():
    load = Load(prompt=100, written=11, concurrency=4)
    found = speeds([Timing(0.5, 2.0)] * 6, load)
    assert found["time_to_first_token"] == {"p50": 0.5, "p99": 0.5}
    assert found["time_per_token"] == {"p50": 0.2, "p99": 0.2}
    assert found["prefill_tokens_per_second"] == 4 * 100 / 0.5
    assert found["decode_tokens_per_second"] == pytest.approx(4 * 10 / 2.0)
    assert found["tokens_per_second"] == pytest.approx(4 * 11 / 2.5)


def test_a_backend_that_writes_nothing_has_no_speed_of_writing():
    found = speeds([Timing(0.5, None)], Load(10, 10))
    assert found["prefill_tokens_per_second"] == 20.0
    assert found["time_per_token"] is found["decode_tokens_per_second"] is None
    both = speed_ups([Timing(0.5, None)], [Timing(0.25, None)])
    assert both["prefill"].median == 2.0 and both["decode"] is None


def test_speed_ups_are_taken_round_by_round():
    """A machine that slows down in the course of a bench slows both models alike."""
    slowing = np.linspace(1, 3, 30)
    base = [Timing(2 * s, 6 * s) for s in slowing]
    other = [Timing(1 * s, 4 * s) for s in slowing]
    found = speed_ups(base, other)
    for phase, right in (("prefill", 2.0), ("decode", 1.5)):
        assert vars(found[phase]) == pytest.approx({"median": right, "low": right, "high": right})


class Noting:
    """A backend that notes when it is called."""

    weight_bytes = None

    def __init__(self, name, notes, at_once=1):
        self.name, self.notes, self.at_once = name, notes, at_once

    def run(self, load, repetitions):
        self.notes.append((self.name, repetitions))
        return [Timing(float(len(self.notes)), 1.0)] * repetitions


def test_models_take_turns_and_none_is_always_first():
    notes = []
    backends = {name: Noting(name, notes) for name in "abc"}
    found = measure(backends, Load(4, 4), 4, lambda number, measured: measured())
    assert "".join(name for name, _ in notes) == "abccbaabccba"
    assert [t.first for t in found["a"]] == [1, 6, 7, 12]
    assert all(len(timings) == 4 for timings in found.values())
    assert list(in_turns("ab", 1)) == ["b", "a"]


def test_repetitions_that_are_cheap_together_are_made_together():
    notes = []
    backends = {"a": Noting("a", notes, at_once=10)}
    assert rounds_of(backends, 25) == [10, 10, 5]
    measure(backends, Load(4, 4), 25, lambda number, measured: measured())
    assert notes == [("a", 10), ("a", 10), ("a", 5)]


def test_rounds_that_are_there_are_not_made_again():
    notes = []
    backends = {"a": Noting("a", notes)}
    kept = {0: {"a": [Timing(9.0, 9.0)]}}
    found = measure(
        backends, Load(4, 4), 2, lambda n, measured: kept[n] if n in kept else measured()
    )
    assert [t.first for t in found["a"]] == [9.0, 1.0] and len(notes) == 1
