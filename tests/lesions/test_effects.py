"""What a lesion did, told from what random neurons do."""

import math

import pytest
from scipy import stats

from funcnet_plugin.errors import AtlasError
from funcnet_plugin.lesions.choice import hurting
from funcnet_plugin.lesions.effects import Effect, dissociations, effect, effects
from funcnet_plugin.lesions.enough import Wanted, fewest, wanted


def test_a_task_loses_points_and_a_text_gains_perplexity():
    assert effect("tasks", 0.9, 0.4, []).change == pytest.approx(-0.5)
    assert effect("texts", 20.0, 30.0, []).change == pytest.approx(math.log(1.5))
    assert not effect("tasks", 0.9, 0.0, []).beyond_chance  # nothing is known of chance
    assert not effect("tasks", 0.9, 0.0, [0.9]).beyond_chance
    assert effect("tasks", 0.9, 0.4, [0.8]).control == pytest.approx(-0.1)


def test_the_interval_is_that_of_one_more_draw():
    controls = [0.88, 0.9, 0.89, 0.91, 0.87]
    e = effect("tasks", 0.9, 0.8, controls)
    deviation = stats.tstd(controls)
    width = stats.t.ppf(0.975, 4) * deviation * math.sqrt(1 + 1 / 5)
    assert e.control == pytest.approx(-0.01)
    assert e.low == pytest.approx(-0.01 - width) and e.high == pytest.approx(-0.01 + width)
    assert e.beyond_chance
    assert not effect("tasks", 0.9, 0.87, controls).beyond_chance


def test_draws_that_all_did_the_same_say_nothing_of_one_more():
    """One question more or less is beyond no chance: scores have steps."""
    e = effect("tasks", 0.80, 0.78, [0.80] * 5)
    assert (e.control, e.low, e.high) == (0.0, None, None) and not e.beyond_chance
    alike = {"task/sort": Effect(0.4, -0.4, -0.4), "task/add": Effect(0.8, 0.0, 0.0)}
    other = {"task/sort": Effect(0.8, 0.0, 0.0), "task/add": Effect(0.4, -0.4, 0.0)}
    assert dissociations({"A": alike, "B": other}, hurts=0.2, spares=0.05) == []  # all hurt "sort"


def test_one_more_random_set_lies_inside_nineteen_times_in_twenty():
    import numpy as np

    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        draws = rng.normal(0.5, 0.02, 6)
        inside += not effect("tasks", 0.9, draws[0], draws[1:]).beyond_chance
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def row(lesion, draw, **tasks) -> dict:
    return {"lesion": lesion, "draw": draw, "texts": {"wiki": 10.0}, "tasks": tasks}


def test_lesions_are_compared_with_their_own_controls():
    rows = [
        row(None, None, sort=0.9),
        row("A", None, sort=0.3), row("A", 0, sort=0.9), row("A", 1, sort=0.8),
        row("B", None, sort=0.9), row("B", 0, sort=0.5), row("B", 1, sort=0.5),
    ]  # fmt: skip
    found = effects(rows)
    assert list(found) == ["A", "B"] and list(found["A"]) == ["text/wiki", "task/sort"]
    assert found["A"]["task/sort"].control == pytest.approx(-0.05)
    assert found["B"]["task/sort"].control == pytest.approx(-0.4)
    assert found["A"]["text/wiki"].change == 0.0


def lost(points: float) -> Effect:
    return Effect(0.0, -points, 0.0, -0.05, 0.05)


def test_a_double_dissociation_needs_both_halves():
    found = {
        "A": {"task/sort": lost(0.4), "task/add": lost(0.0)},
        "B": {"task/sort": lost(0.01), "task/add": lost(0.5)},
        "C": {"task/sort": lost(0.4), "task/add": lost(0.4)},  # hurts all
        "D": {"task/sort": lost(0.0), "task/add": lost(0.0)},  # hurts nothing
    }
    assert dissociations(found, hurts=0.2, spares=0.05) == [("A", "task/sort", "B", "task/add")]
    assert dissociations(found, hurts=0.45, spares=0.05) == []
    by_chance = {k: {t: Effect(0, e.change, -0.4, -0.6, -0.2) for t, e in of.items()}
                 for k, of in found.items()}  # fmt: skip
    assert dissociations(by_chance, hurts=0.2, spares=0.05) == []


def test_networks_are_ranked_by_what_one_task_loses_beyond_the_others():
    found = {
        "A": {"task/sort": lost(0.3), "task/add": lost(0.25)},
        "B": {"task/sort": lost(0.2), "task/add": lost(0.0)},
        "C": {"task/sort": lost(0.1), "task/add": lost(-0.1)},  # a gain elsewhere is no reason
        "D": {"task/sort": lost(0.0), "task/add": lost(0.0)},
    }
    assert hurting(found, "hurting:sort:3") == ["B", "C", "A"]
    for text, message in [
        ("hurting:sort:4", "only 3 hurt sort more than all other tasks"),
        ("hurting:add:1", "only 0 hurt add"),
        ("hurting:copy:1", "has no task 'copy', but add, sort"),
        ("hurting:sort", "chooses no networks; write hurting:TASK:N"),
        ("hurting:sort:0", "chooses no networks"),
    ]:
        with pytest.raises(AtlasError, match=message):
            hurting(found, text)


@pytest.mark.parametrize("needed", [1, 2, 17, 99, 100])
def test_the_fewest_are_found_by_halving(needed):
    asked = []

    def keeps(names) -> float:
        asked.append(len(names))
        return len(names) / 100

    names = [str(i) for i in range(100)]
    assert fewest(names, keeps, needed / 100, "x") == names[:needed]
    assert len(asked) <= 9


def test_all_networks_may_not_be_enough():
    with pytest.raises(AtlasError, match=r"x: all 3 networks together keep 0\.500 and 0\.950 is"):
        fewest(["a", "b", "c"], lambda names: 0.5, 0.95, "x")


def test_what_is_to_be_kept_is_read():
    assert wanted("enough:sort:0.9") == Wanted("sort", 0.9)
    assert wanted("enough:sort") == Wanted("sort", 0.95)
    assert wanted("enough:a:b") == Wanted("a:b", 0.95)
    assert wanted("L3.N1") is None
    for text in ("enough:", "enough:sort:0", "enough:sort:1.5"):
        with pytest.raises(AtlasError, match="asks for nothing"):
            wanted(text)
