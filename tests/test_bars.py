"""Whatever takes long shows how far it is."""

import io
import sys
import time

import pytest
import tqdm as tqdm_package
from torch.utils.data import DataLoader, IterableDataset

from funcnet_plugin import bars
from funcnet_plugin.evaluation.perplexity import perplexities, text_windows
from funcnet_plugin.text.writing import write
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import logged, networks, recipe, run


def depth(score):
    fields = f"{{pruning_ratio: 0.2, score: {score}}}"
    return f"s_stage: {{p_modifiers: {{DepthPruningModifier: {fields}}}}}"


@pytest.fixture
def shown(monkeypatch):
    """What bars would write on a terminal."""
    screen = io.StringIO()

    class Shown(tqdm_package.tqdm):
        def __init__(self, *args, **options):
            super().__init__(
                *args, **(options | {"file": screen, "disable": False, "mininterval": 0})
            )

    monkeypatch.setattr(bars, "tqdm", Shown)
    return screen


def test_writing_is_counted_token_by_token(shown):
    with logged() as lines:
        write(make_llama(), range(3, 32), begin=[[3], [4], [5, 6]], window=9, seed=0)
    assert "23 tokens in all" in "".join(lines)
    assert "the model writes: 100%" in shown.getvalue() and "23/23" in shown.getvalue()
    assert " 4/23" in shown.getvalue()  # two windows at once, after the second token


def test_writing_is_the_same_with_and_without_a_bar(shown):
    options = {"begin": [[3], [4]], "window": 9, "seed": 0}
    with_bar = write(make_llama(), range(3, 32), **options)
    assert len(with_bar) == 2 and {len(window) for window in with_bar} == {9}
    assert with_bar == write(make_llama(), range(3, 32), **options)


@pytest.mark.usefixtures("forget_the_session")
@pytest.mark.parametrize(
    ("text", "titles"),
    [
        (
            recipe("WidthPruningModifier", scorer="surgeon", own_text=0.25,
                   repair="distillation"),
            ["the model writes", "what the dense model predicts", "gradients",
             "moments of its own text", "how layers are called", "calibrating layers",
             "checking weights", "reading calibration data", "eliminating neurons",
             "comparing with the dense model", "distillation"],
        ),
        (recipe(scorer=networks(strategy="global")), ["networks across layers"]),
        (recipe(allocation="threshold"), ["calibrating layers", "cutting and repairing layers"]),
        (depth("block_influence"), ["block influence"]),
        (depth("perplexity"), ["perplexity without each layer"]),
    ],
)  # fmt: skip
def test_passes_through_the_whole_model_have_bars(fresh, texts, shown, text, titles):
    run(fresh(), texts, text)
    for title in titles:
        assert title in shown.getvalue()


def test_measuring_has_a_bar(checkpoint, texts, shown):
    perplexities(checkpoint, {"letters": text_windows(texts, "text", make_tokenizer(), 20, 4)})
    assert "perplexity of letters" in shown.getvalue()


def test_items_come_through_whatever_their_length(shown):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    assert list(bars.bar(DataLoader(Endless(), batch_size=None), "reading")) == [0, 1, 2]
    assert list(bars.bar(iter("ab"), "reading")) == ["a", "b"]
    assert shown.getvalue().count("reading") >= 2
    before = shown.getvalue()
    assert list(bars.bar([1], "")) == [1] and shown.getvalue() == before
    assert sys.stderr is not shown


def test_work_without_steps_shows_how_long_it_takes(shown, monkeypatch):
    monkeypatch.setattr(bars, "_PATIENCE", 0.0)
    with bars.ticking("thinking"):
        while "thinking (00:00)" not in shown.getvalue():
            time.sleep(0.01)
    shown.truncate(0)
    time.sleep(0.01)
    assert "thinking" not in shown.getvalue()


def test_work_that_is_soon_done_shows_nothing(shown):
    with bars.ticking("thinking"):
        pass
    assert shown.getvalue() == ""
