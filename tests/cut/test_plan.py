"""Which layers a run cuts and to which widths, decided from the shapes alone."""

import pytest
import torch

from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import AdapterError, RecipeError
from tests.conftest import make_llama
from tests.hosting import logged

NAME = "model.layers.{}.mlp"


SETTINGS = {
    "ratio": 0.2,
    "scope": "mlp",
    "align": 4,
    "skip_first": 0,
    "skip_last": 0,
    "ignore": (),
}


def plan(model=None, **changes) -> WidthPlan:
    return WidthPlan(make_llama() if model is None else model, **SETTINGS | changes)


def test_one_width_is_known_before_anything_is_measured():
    made = plan()
    assert made.kept is None and made.possible_widths(made.prunable[0]) == [*range(4, 48, 4), 48]
    assert made.decide_uniform() == pytest.approx(1 / 6)
    assert made.kept == [40] * 3 and made.original == [48] * 3
    assert made.possible_widths(made.prunable[0]) == [40]


def test_a_threshold_decides_by_the_scores_of_the_layers_that_may_be_cut():
    made = plan(skip_first=1, one_width=False, ratio=1 / 6)
    assert [unit.index for unit in made.prunable] == [1, 2]
    made.decide_by_threshold([torch.zeros(48), torch.ones(48)])
    assert made.kept == [48, 24, 48]
    assert made.possible_widths(made.prunable[0]) == [24]


def test_layers_are_left_whole_at_the_ends_and_by_name():
    def cut_layers(**changes):
        return [unit.index for unit in plan(ratio=0.1, **changes).prunable]

    assert cut_layers(skip_first=1, skip_last=1) == [1]
    assert cut_layers(ignore=[NAME.format(1)]) == [0, 2]
    assert cut_layers(ignore=[r"re:.*layers\.[01]\.mlp$"]) == [2]


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        ([NAME.format(7)], r"'model.layers.7.mlp' matches no MLP; they are called model.layers.0"),
        ([NAME.format(1), "layers.2"], "'layers.2' matches no MLP"),
        (["re:*"], r"'re:\*' is no regular expression"),
        (["re:.*"], "names every one of the 3 MLPs"),
    ],
)
def test_an_ignore_that_means_nothing_or_everything_is_refused(ignore, message):
    with pytest.raises(RecipeError, match=message):
        plan(ignore=ignore)


def test_parameters_follow_the_cut_and_count_shared_ones_once():
    model = make_llama(tie_word_embeddings=True)
    made = plan(model)
    assert made.parameters == made.parameters_now() == model.num_parameters()
    cut(made.layout.blocks[1], torch.arange(8))
    assert made.parameters_now() == model.num_parameters() == made.parameters - 40 * 3 * 24


def test_shapes_are_enough():
    with torch.device("meta"):
        made = plan(make_llama())
    made.decide_uniform()
    assert made.kept == [40] * 3
    with pytest.raises(AdapterError, match="no adapter"):
        plan(torch.nn.Linear(2, 2))


def test_widths_far_from_what_was_asked_are_said():
    made = plan(align=24, ratio=0.3)
    with logged() as lines:
        assert made.decide_uniform() == 0.5
    assert any("asked to remove 0.3, and 0.5000 goes" in line for line in lines)
