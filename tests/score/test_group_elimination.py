"""Which groups of columns an output can do without, against least squares of every subset."""

from itertools import combinations

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.adapters.attention import bind_attention
from funcnet_plugin.measure.moments import damping
from funcnet_plugin.repair.least_squares import least_squares
from funcnet_plugin.score.group_elimination import RIDGE, cost_by_effect, eliminate_groups
from tests.conftest import make_llama


@pytest.fixture
def model():
    return make_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=3)


def second_moment(width, seed=0):
    h = torch.randn(400, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    h = h @ torch.randn(
        width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return h.T @ h / len(h)


def left_by_least_squares(weight, second, columns):
    """The error of the output, in the damped moments, with these columns kept and repaired."""
    S = second + damping(second, RIDGE) * torch.eye(len(second), dtype=torch.float64)
    change = weight.detach().double().clone()
    change[:, columns] -= least_squares(weight.detach(), second, columns, RIDGE)
    return float(((change @ S) * change).sum())


def test_a_group_goes_whose_removal_costs_least_and_the_cost_is_that_of_least_squares(model):
    unit = bind_attention(model, "model.layers")[0]
    second = second_moment(unit.n_columns)
    score, cost = eliminate_groups(unit, second)
    assert sorted(score.tolist()) == [0.0, 1.0, 2.0, 3.0] and cost[0] == 0.0
    left = list(range(4))
    for step in range(3):
        errors = {
            kept: left_by_least_squares(
                unit.out.weight, second, unit.columns_of(torch.tensor(kept))
            )
            for kept in combinations(left, len(left) - 1)
        }
        best = min(errors, key=errors.get)
        (went,) = set(left) - set(best)
        assert score[went] == step
        assert float(cost[step + 1]) == pytest.approx(errors[best], rel=1e-9)
        left = list(best)


def test_heads_that_are_never_active_go_first(model):
    unit = bind_attention(model, "model.layers")[0]
    second = second_moment(unit.n_columns)
    silent = unit.columns_of(torch.tensor([1, 2]))
    second[silent] = 0
    second[:, silent] = 0
    score, cost = eliminate_groups(unit, second)
    assert set(score.argsort()[:2].tolist()) == {1, 2}
    assert cost[2] < 0.1 * cost[3]  # what damping counts of them


def test_the_cost_of_neurons_by_effect_is_that_of_least_squares(model):
    block = bind(model).blocks[0]
    second = second_moment(block.width)
    effect = torch.rand(block.width, generator=torch.Generator().manual_seed(3)).double()
    cost = cost_by_effect(block, second, effect)
    assert cost.shape == (49,) and cost[-1] == 0.0
    for kept in (1, 7, 30, 47):
        columns = effect.topk(kept).indices.sort().values
        expected = left_by_least_squares(block.down.weight, second, columns)
        assert float(cost[kept]) == pytest.approx(expected, rel=1e-9)
