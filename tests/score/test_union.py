"""Several scorers in one recipe: a neuron goes only if none of them needs it."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.union import union_of_ranks
from tests.hosting import kept_of, networks, recipe, run
from tests.parts import Early, Late, bringing

pytestmark = pytest.mark.usefixtures("forget_the_session")


def test_a_neuron_counts_by_the_better_of_its_ranks_over_the_layers_given():
    one = [torch.tensor([9.0, 1.0, 2.0]), torch.tensor([3.0, 8.0, 0.5])]
    other = [torch.tensor([0.0, 5.0, 4.0]), torch.tensor([3.0, 1.0, 6.0])]
    together = torch.cat(union_of_ranks([one, other]))
    assert (together * 6).round().tolist() == [6, 5, 4, 4, 5, 6]
    alone = union_of_ranks([[one[0]], [other[0]]])[0]
    assert (alone * 3).round().tolist() == [3, 3, 2]


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_union_keeps_what_either_needs(fresh, texts, tmp_path, allocation):
    """One needs the first neurons most, the other the last: those in the middle go."""
    fields = {"scorer": ["early", "late"], "allocation": allocation}
    with bringing(SCORERS, Early, Late):
        model = run(fresh(), texts, recipe("WidthPruningModifier", **fields))
    for kept in kept_of(model, tmp_path):
        half = len(kept) // 2
        assert kept == [*range(half), *range(48 - half, 48)]


@pytest.mark.parametrize("scorers", [["obs", "obs"], ["effect", "obs", {"name": "obs"}]])
def test_a_scorer_is_not_united_with_itself(fresh, texts, scorers):
    with pytest.raises(RecipeError, match=r"scorer names one twice: .*obs, obs; name each once"):
        run(fresh(), texts, recipe("WidthPruningModifier", scorer=scorers))


def test_a_union_of_no_scorer_is_refused(fresh, texts):
    with pytest.raises(RecipeError, match="scorer names none; give one"):
        run(fresh(), texts, recipe("WidthPruningModifier", scorer=[]))


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_networks_take_one_more_scorer_into_the_union(fresh, texts, strategy):
    """With numbers that need a fixed half of all neurons, these stay whatever the networks say."""
    source = fresh()
    rows = bind(source).blocks[2].up.weight.detach().clone()
    with bringing(SCORERS, Late):
        text = recipe(scorer=[networks(strategy=strategy), "effect", "late"])
        block = bind(run(source, texts, text)).blocks[2]
    kept = [i for i, row in enumerate(rows) if (block.up.weight == row).all(1).any()]
    assert len(kept) == block.width and set(range(42, 48)) <= set(kept)
