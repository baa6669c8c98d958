"""Cuts heads, and decides how many of them go instead of neurons.

That is done on the dense model, before layers are calibrated one by one: neurons are scored and
repaired for what the heads that are left give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.adapters.head_counts import set_heads
from funcnet_plugin.bars import bar
from funcnet_plugin.cut.budget import select
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.cut.surgery import cut, set_output_bias
from funcnet_plugin.measure.dense_moments import moments_by_layer
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.passes import layer_by_layer
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.checks import checked_repair
from funcnet_plugin.repair.repair import Cut, Repair
from funcnet_plugin.score.group_elimination import cost_by_effect, eliminate_groups
from funcnet_plugin.score.scorer import Evidence
from funcnet_plugin.score.single import Effect


@torch.no_grad()
def cut_heads(
    plan: WidthPlan,
    model: nn.Module,
    text: Text,
    repair: Repair,
    processes: Processes | None = None,
    after_cut: Callable[[Unit], None] = lambda unit: None,
) -> list[list[int]]:
    """Cut the heads that the outputs of their layers need least, and repair these outputs.

    Args:
        plan: with heads; how many go is decided here where that is open.
        model: dense; its config learns the numbers that are left.
        text: the calibration data.
        repair: of the recipe; takes a unit of heads like one of neurons.
        processes: others that read other text.
        after_cut: called with every unit whose shapes have changed.

    Returns:
        per layer the groups that are kept, ascending.
    """
    units = plan.heads.units
    scores, costs, moments = [], [], []
    for unit, found in _moments(plan, model, text, units, processes, "what heads give"):
        score, cost = eliminate_groups(unit, found.second)
        scores.append(score)
        costs.append(cost)
        moments.append(found)
    if plan.heads_are_open:
        added = [_energy(unit, found) for unit, found in zip(units, moments, strict=True)]
        cheapest = _cheapest(plan, model, text, processes, costs, added)
        if processes is not None:
            cheapest = int(processes.from_first(torch.tensor(cheapest)))
        plan.decide_heads(cheapest)
    if plan.heads.kept == plan.heads.original:
        return [list(range(unit.width)) for unit in units]
    kept = []
    with layer_by_layer(model):
        for unit in bar(units, "cutting and repairing heads", "layer"):
            keep = select(scores[unit.index], plan.heads.kept)
            if processes is not None:
                keep = processes.from_first(keep)
            keep = keep.to(unit.device)
            known = {"moments": moments[unit.index]} if "moments" in repair.needs else {}
            told = Cut(unit, keep, known)
            repaired = checked_repair(repair, told, repair.repaired(told))
            cut(unit, keep, repaired.output_weight)
            if repaired.bias is not None:
                set_output_bias(unit, repaired.bias)
            after_cut(unit)
            kept.append(keep.tolist())
    set_heads(model.config, units[0], plan.heads.kept)
    return kept


def _cheapest(
    plan: WidthPlan,
    model: nn.Module,
    text: Text,
    processes: Processes | None,
    of_heads: list[Tensor],
    added: list[float],
) -> int:
    """Find how many groups to keep so that the layers' outputs lose least, neurons included.

    What attention and MLP of a layer lose is taken as a share of what both add to the hidden
    states, and summed over layers. Which neurons go is not known yet: those of least effect stand
    for them.

    Args:
        of_heads: per layer, see `eliminate_groups`.
        added: per layer the mean square of what its attention adds.
    """
    blocks = plan.layout.blocks
    title = "weighing neurons against heads"
    widths = {kept: budget.uniform() for kept, budget in plan.choices.items()}
    total = dict.fromkeys(plan.choices, 0.0)
    for block, found in _moments(plan, model, text, blocks, processes, title):
        i = block.index
        effect = Effect().score(Evidence(block, 0, {"moments": found}))
        cost = cost_by_effect(block, found.second, effect)
        whole = added[i] + _energy(block, found)
        for kept in total:
            lost = of_heads[i][plan.heads.original - kept] + float(cost[widths[kept][i]])
            total[kept] += float(lost) / whole / len(blocks)
    shares = ", ".join(f"{kept}: {share:.4f}" for kept, share in total.items())
    logger.info(f"share of the layers' outputs that is lost, by key-value heads kept: {shares}")
    return min(total, key=lambda kept: (total[kept], -kept))


def _moments(
    plan: WidthPlan,
    model: nn.Module,
    text: Text,
    units: tuple[Unit, ...],
    processes: Processes | None,
    title: str,
) -> Iterator[tuple[Unit, Moments]]:
    for unit, found in moments_by_layer(model, plan.layout.blocks, text, units, title):
        if processes is not None:
            found.merge(processes)
        yield unit, found


def _energy(unit: Unit, moments: Moments) -> float:
    """Compute the mean square of what a unit adds to the hidden states, over tokens."""
    weight = unit.output_weight.detach().double()
    second = moments.second.to(weight.device)
    return max(float(((weight @ second) * weight).sum()), torch.finfo(torch.float64).tiny)
