"""What was asked and what one step takes: far apart is refused or said, never silent."""

import pytest
import torch

from funcnet_plugin.cut.budget import LayerSize, far_from_asked, plan_budget
from funcnet_plugin.errors import BudgetError
from funcnet_plugin.inspection import inspect_model
from tests.cut.test_budget import plan
from tests.hosting import logged, recipe, run
from tests.peers.test_whole_model_peers import peer

pytestmark = pytest.mark.usefixtures("forget_the_session")


@pytest.mark.parametrize("ratio", [0.0001, 0.001, 0.02])
def test_a_ratio_far_below_one_step_is_refused_with_the_step_and_an_align_that_does(ratio):
    with pytest.raises(BudgetError, match=r"align=128 at least 0\.0539 goes") as refused:
        plan(ratio, 128)
    text = str(refused.value)
    if "set align: " not in text:
        assert ratio == 0.0001  # not even single neurons are that few
        return
    align = int(text.split("set align: ")[1].rstrip("."))
    assert plan(ratio, align).uniform()
    with pytest.raises(BudgetError):
        plan(ratio, align * 2)


def test_a_step_that_is_somewhat_more_than_asked_is_said():
    budget = plan(0.03, 128)
    kept = budget.uniform()
    assert kept == [640] * 6
    assert "asked to remove 0.03, and 0.0539 goes" in budget.far_from_asked(kept)
    near = plan(0.2, 32)
    assert near.far_from_asked(near.uniform()) is None


def test_one_cut_over_all_layers_has_a_step_of_its_own():
    """One block of one layer, a sixth of one of all layers."""
    assert plan(0.005, 128, one_width=False).threshold([torch.rand(704)] * 6)
    with pytest.raises(BudgetError, match=r"at least 0\.0090 goes"):
        plan(0.004, 128, one_width=False)
    with pytest.raises(BudgetError, match=r"at least 0\.0539 goes"):
        plan(0.005, 128)


def test_of_the_mlps_it_is_said_so():
    with pytest.raises(BudgetError, match=r"of the MLPs .* at least 0\.0909"):
        plan(0.01, 128, scope="mlp")


def test_a_threshold_overshoots_where_that_is_nearer():
    """Blocks of 10 * 32 and a target of 1.6 of them: two go."""
    layers = [LayerSize(128, 10)] * 2
    budget = plan_budget(
        layers, ratio=0.2, align=32, total_parameters=2560, scope="model", one_width=False
    )
    assert budget.target == 512
    kept = budget.threshold([torch.arange(128.0), torch.arange(128.0) + 64])
    assert budget.removed(kept) == 640 and kept == [64, 128]


@pytest.mark.parametrize("name", ["WidthPruningModifier", "FunctionalNetworkModifier"])
def test_a_run_says_or_refuses(fresh, texts, name):
    def text(ratio, align, **more):
        return recipe(name, ratio_scope="mlp", pruning_ratio=ratio, align=align, **more)

    with pytest.raises(BudgetError, match=r"align=24 at least 0\.5000 goes"):
        run(fresh(), texts, text(0.01, 24))
    with pytest.raises(BudgetError, match=r"align=24 at least 0\.1667 goes"):
        run(fresh(), texts, text(0.01, 24, allocation="threshold"))
    with logged() as lines:
        run(fresh(), texts, text(0.3, 24))
    assert any("asked to remove 0.3, and 0.5000 goes" in line for line in lines)
    with logged() as lines:
        run(fresh(), texts, text(0.1, 24, allocation="threshold"))
    assert any("asked to remove 0.1, and 0.1667 goes" in line for line in lines)


def test_inspect_says_so_beside_the_ratio(checkpoint):
    refused, far, near = inspect_model(checkpoint, (0.01, 0.2, 0.3), align=24).reaches
    assert refused.kept_width is None and "align=24 at least" in refused.reason
    assert far.kept_width == 24 and "asked to remove 0.2" in far.reason
    assert near.kept_width == 24 and near.reason is None


def test_whole_layers_and_axes_too(fresh, texts):
    before = sum(p.numel() for p in fresh().parameters())
    for name, fields in (
        ("DepthPruningModifier", {}),
        ("HiddenSlicingModifier", {"multiple_of": 8}),
    ):
        model = fresh()
        with pytest.raises(BudgetError, match="far less than can be removed"):
            run(model, texts, peer(name, pruning_ratio=0.001, **fields))
        assert sum(p.numel() for p in model.parameters()) == before
    with logged() as lines:
        run(fresh(), texts, peer("DepthPruningModifier", pruning_ratio=0.2))
    assert any("asked to remove 0.2" in line and "whole layers go" in line for line in lines)
    with pytest.raises(BudgetError, match="cannot be reached"):
        run(fresh(), texts, peer("DepthPruningModifier", pruning_ratio=0.001, skip_first=3))


@pytest.mark.parametrize(
    ("reached", "said"), [(0.1, False), (0.12, False), (0.13, True), (0.05, True)]
)
def test_a_quarter_off_is_said(reached, said):
    assert (far_from_asked(0.1, reached, "so it is") is not None) == said
