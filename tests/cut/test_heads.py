"""How many heads go, as a part of one ratio that neurons make up the rest of."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from funcnet_plugin.adapters import count_parameters
from funcnet_plugin.cut.heads import HeadPlan
from funcnet_plugin.cut.plan import AUTO, WidthPlan
from funcnet_plugin.errors import BudgetError
from tests.conftest import make_llama
from tests.hosting import logged


def mistral(groups=4):
    """Heads of size 3 in any number; 3 layers, hidden size 24, width 48."""
    config = MistralConfig(
        vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=3, head_dim=3,
        num_attention_heads=2 * groups, num_key_value_heads=groups, sliding_window=None,
    )  # fmt: skip
    with torch.device("meta"):
        return MistralForCausalLM(config)


def plan(model=None, ratio=0.3, **changes):
    settings = {"scope": "model", "align": 1, "skip_first": 0, "skip_last": 0, "ignore": ()}
    return WidthPlan(model or mistral(), ratio=ratio, **settings | changes)


@pytest.mark.parametrize(("share", "kept"), [(0.25, 3), (0.2, 3), (0.45, 2), (0.75, 1), (0.99, 1)])
def test_the_nearest_number_of_heads_is_kept(share, kept):
    heads = HeadPlan(mistral(), "model.layers")
    heads.decide_by_share(share)
    assert heads.kept == kept and heads.possible == [1, 2, 3]
    # 12 rows of 24 (two query heads, a key and a value) and 6 columns of 24, in three layers
    assert heads.removed(kept) == (4 - kept) * 3 * 18 * 24


def test_a_number_far_from_the_share_is_warned_of_and_far_beyond_it_refused():
    heads = HeadPlan(make_llama(num_attention_heads=8, num_key_value_heads=8), "model.layers")
    with logged() as lines:
        heads.decide_by_share(0.18)
    assert heads.kept == 6 and "asked to remove 0.18, and 0.2500 goes" in "".join(lines)
    with pytest.raises(BudgetError, match=r"heads_ratio=0.1 is .* 1 or 2 or 3 or 4 or 6 or 8 key"):
        heads.decide_by_share(0.1)


@pytest.mark.parametrize("one_width", [True, False])
@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.4])
def test_neurons_make_up_the_rest_of_the_ratio(ratio, one_width):
    model = mistral()
    made = plan(model, ratio, heads_ratio=0.25, one_width=one_width)
    if one_width:
        made.decide_uniform()
    else:
        made.decide_by_threshold([torch.rand(48) for _ in range(3)])
    neurons = sum((48 - kept) * 72 for kept in made.kept)
    assert neurons > 0 and made.budget.removed(made.kept) == neurons + 3 * 18 * 24
    step = 72 * (3 if one_width else 1)
    assert abs(made.budget.removed(made.kept) - ratio * count_parameters(model)) <= step / 2


def test_heads_that_are_more_than_the_ratio_are_refused():
    with pytest.raises(BudgetError, match=r"without any neuron: the heads that go are 0\.\d+ of"):
        plan(ratio=0.1, heads_ratio=0.75)


def test_open_heads_have_a_budget_for_every_number_with_which_the_ratio_can_be_reached():
    made = plan(ratio=0.3, heads_ratio=AUTO)
    assert made.heads_are_open and list(made.choices) == [4, 3, 2, 1]
    widths = {kept: budget.uniform()[0] for kept, budget in made.choices.items()}
    assert widths[4] < widths[3] < widths[2] < widths[1]
    assert made.possible_widths(made.prunable[0]) == sorted(widths.values())
    made.decide_heads(2)
    made.decide_uniform()
    assert made.kept == [widths[2]] * 3 and not made.heads_are_open
    # more than all neurons have, and less than three of four groups
    assert 4 not in plan(ratio=0.62, heads_ratio=AUTO).choices
    assert 1 not in plan(ratio=0.2, heads_ratio=AUTO).choices
    with pytest.raises(BudgetError, match="cannot be reached"):
        plan(ratio=0.95, heads_ratio=AUTO)
