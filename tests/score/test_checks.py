"""Scores are looked at before anything is cut by them."""

import tempfile

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CheckpointError, NumbersError, RecipeError
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Scorer
from funcnet_plugin.score.union import union_of_ranks
from tests.conftest import make_llama
from tests.hosting import logged, logits, networks, recipe
from tests.hosting import run as run_it
from tests.parts import bringing

pytestmark = pytest.mark.usefixtures("forget_the_session")
NAN = float("nan")


def run(model, texts, text):
    """From a directory: llm-compressor reads the config there."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return run_it(AutoModelForCausalLM.from_pretrained(folder), texts, text)


def scoring(function):
    """Let the recipe's scorer `mine` give what a function says, for as long as it is asked."""

    class Mine(Scorer):
        name = "mine"

        def score(self, evidence):
            return function(evidence)

    return bringing(SCORERS, Mine)


def dead():
    """Make a model whose second MLP is all zero."""
    model = make_llama()
    with torch.no_grad():
        for module in bind(model).blocks[1].projections:
            module.weight.zero_()
    return model


WRONG = {
    "NaN": (lambda e: torch.full((e.unit.width,), NAN), NumbersError, r"48 of 48 .*\[0, 1, 2"),
    "infinite": (lambda e: torch.arange(48.0) / torch.arange(48.0), NumbersError, "1 of 48"),
    "too short": (lambda e: torch.ones(5), RecipeError, r"\(5,\) of float32"),
    "a column": (lambda e: torch.ones(48, 1), RecipeError, r"\(48, 1\) of"),
    "a mask": (lambda e: torch.ones(48, dtype=torch.bool), RecipeError, "of bool"),
    "complex": (lambda e: torch.ones(48, dtype=torch.cfloat), RecipeError, "of complex64"),
    "a list": (lambda e: [1.0] * 48, RecipeError, "list"),
    "nothing": (lambda e: None, RecipeError, "NoneType"),
}


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
@pytest.mark.parametrize("case", WRONG)
def test_what_a_scorer_gives_is_looked_at(fresh, texts, case, allocation):
    score, error, message = WRONG[case]
    text = recipe("WidthPruningModifier", scorer="mine", allocation=allocation)
    union = recipe(scorer=[networks(), "mine"], allocation=allocation)
    with scoring(score):
        with pytest.raises(error, match=f"^layer 0: the scorer mine gave .*{message}"):
            run(fresh(), texts, text)
        with pytest.raises(error, match=r"^layer 0: the scorer mine gave "):
            run(fresh(), texts, union)


def test_integers_and_half_precision_are_numbers(fresh, texts):
    with scoring(lambda e: torch.arange(48).to(torch.int16 if e.unit.index else torch.float16)):
        model = run(fresh(), texts, recipe("WidthPruningModifier", scorer="mine"))
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("scorer", ["effect", "flap", "wanda_sp", "taylor", "obs", "surgeon",
                                    "loss_effect", "magnitude"])  # fmt: skip
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_a_dead_layer_is_said_to_have_no_order(texts, scorer, allocation):
    model = dead()
    text = recipe(
        "WidthPruningModifier", scorer=scorer, allocation=allocation, repair="least_squares"
    )
    with logged() as lines:
        run(model, texts, text)
    said = [line for line in lines if "gives all" in line]
    assert len(said) == 1
    assert f"layer 1: the scorer {scorer} gives all 48 neurons the same score (0)" in said[0]
    assert "model.layers.1.mlp into the recipe's ignore" in said[0]


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_networks_of_a_dead_layer_are_refused_by_name(texts, strategy):
    model = dead()
    with pytest.raises(CheckpointError, match=r"the MLP of layer 1 is dead.*ignore: \[model"):
        run(model, texts, recipe(scorer=networks(strategy=strategy)))
    ignored = recipe(
        scorer=networks(strategy=strategy), ignore=["model.layers.1.mlp"], pruning_ratio=0.1
    )
    assert bind(run(model, texts, ignored)).widths[1] == 48


def test_a_score_that_is_all_alike_has_no_say_in_a_union():
    other, alike = torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.ones(4)
    for scores in ([[other], [alike]], [[alike], [other]]):
        assert union_of_ranks(scores)[0].argsort().tolist() == [1, 2, 0, 3]
    assert union_of_ranks([[alike], [alike]])[0].tolist() == [0.0] * 4
