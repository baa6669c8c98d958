import pytest
import torch

from funcnet_plugin.cut.budget import LayerSize, plan_budget, select
from funcnet_plugin.errors import BudgetError


def plan(ratio=0.2, align=32, widths=(704,) * 6, cost=768, total=5_475_584, prunable=None, **more):
    prunable = prunable or [True] * len(widths)
    layers = [LayerSize(w, cost, p) for w, p in zip(widths, prunable, strict=True)]
    return plan_budget(layers, ratio=ratio, align=align, total_parameters=total, **more)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("align", [1, 8, 32, 128])
def test_uniform_is_aligned_and_within_half_a_step_of_the_request(ratio, align):
    budget = plan(ratio, align)
    kept = budget.uniform()
    assert len(set(kept)) == 1 and kept[0] % align == 0
    step = align * 768 * 6
    first = (704 - (704 - 1) // align * align) * 768 * 6  # the smallest cut there is
    assert abs(budget.removed(kept) - ratio * 5_475_584) <= max(step / 2, first)


def test_a_ratio_of_half_a_step_still_cuts_one():
    assert plan(0.027, 128).uniform() == [640] * 6


def test_skipped_layers_stay_whole():
    kept = plan(prunable=[False, True, True, True, True, False]).uniform()
    assert kept[0] == kept[-1] == 704
    assert kept[1] < 704


def test_ratio_of_the_mlps_counts_the_mlps():
    budget = plan(0.25, align=1, scope="mlp")
    assert budget.removed(budget.uniform()) == 0.25 * 704 * 768 * 6


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_ratios_outside_0_and_1_are_refused(ratio):
    with pytest.raises(BudgetError, match="between 0 and 1"):
        plan(ratio)


def test_an_unreachable_ratio_is_refused_with_the_reachable_maximum():
    with pytest.raises(BudgetError, match=r"at most 0\.5655 goes"):
        plan(0.8, align=32)  # 672 / 704 of the MLPs' 59.2%


def test_align_that_leaves_nothing_to_cut_is_refused():
    with pytest.raises(BudgetError, match="choose an align below 704"):
        plan(align=704)


def test_skipping_all_layers_is_refused():
    with pytest.raises(BudgetError, match="none of the 2 layers"):
        plan(widths=(64, 64), prunable=[False, False])


def test_threshold_with_align_1_is_one_threshold_for_all_layers():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(100, generator=generator) * (i + 1) for i in range(3)]
    budget = plan(0.3, align=1, widths=(100,) * 3, cost=10, total=3000)
    kept = budget.threshold(scores)
    assert budget.removed(kept) == 900
    everything = torch.cat(scores)
    cut = everything.sort().values[89]
    assert kept == [int((s > cut).sum()) for s in scores]


def test_threshold_keeps_widths_aligned_and_one_block_per_layer():
    scores = [torch.zeros(128), torch.rand(128) + 1, torch.rand(100) + 1]
    budget = plan(0.5, align=32, widths=(128, 128, 100), cost=10, total=3560)
    kept = budget.threshold(scores)
    assert kept[0] == 32  # worthless, and still there
    assert all(w % 32 == 0 or w == 100 for w in kept)
    assert abs(budget.removed(kept) - 1780) <= 32 * 10


def test_select_keeps_the_highest_in_order_and_breaks_ties_by_index():
    assert select(torch.tensor([1.0, 5, 3, 3, 0]), 3).tolist() == [1, 2, 3]
    assert select(torch.ones(5), 2).tolist() == [0, 1]
