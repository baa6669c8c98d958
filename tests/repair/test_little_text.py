"""A repair that has little to learn from is warned of, with the numbers, once."""

import pytest

from funcnet_plugin.repair.enough import too_little_text
from tests.hosting import loader, logged, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


def said(fresh, texts, samples, **fields):
    base = {"scorer": "effect", "align": 8}
    with logged() as lines:
        run(
            fresh(),
            texts,
            recipe("WidthPruningModifier", **base | fields),
            dataset=loader(texts, samples=samples),
        )
    return [line for line in lines if "may be worse than none" in line]


@pytest.mark.parametrize("repair", ["least_squares", "distillation"])
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_four_windows_are_too_few_for_every_repair(fresh, texts, repair, allocation):
    (line,) = said(fresh, texts, 4, repair=repair, allocation=allocation)
    assert "reads 160 tokens" in line and "repair: none" in line
    assert ("of 4 samples" in line) == (repair == "distillation")


@pytest.mark.parametrize("repair", ["least_squares", "distillation"])
def test_enough_is_enough(fresh, texts, repair):
    assert not said(fresh, texts, 32, repair=repair)


def test_what_repairs_nothing_needs_no_text(fresh, texts):
    assert not said(fresh, texts, 4, repair="none")


def test_tokens_and_samples_each_count():
    assert too_little_text(599, 100) and too_little_text(600, 100) is None
    assert too_little_text(600, 100, 31) and too_little_text(600, 100, 32) is None
    assert "599 tokens of 40 samples for 100 kept neurons" in too_little_text(599, 100, 40)
