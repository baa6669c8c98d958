"""Computes what a run takes in memory, stage by stage, before it starts.

Everything follows from the model's shapes, the recipe and the amount of text; the weights are not
needed. Each part of a recipe says what it takes itself (`working_bytes` and its neighbours). Python
and the libraries are left out: they take about 1 GB of the host and, with CUDA, about as much of
the GPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from funcnet_plugin.atlas.structure import structure_bytes
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.measure.free_memory import FreeMemory
from funcnet_plugin.measure.moments import product_bytes
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.run import stages
from funcnet_plugin.run.request import Request
from funcnet_plugin.run.stages import Stage, Term
from funcnet_plugin.run.terms import Terms
from funcnet_plugin.text.at_once import bytes_per_window, windows_within
from funcnet_plugin.text.own import CONTINUED_LENGTH, OWN_LENGTH, PER_SAMPLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def memory(
    request: Request,
    plan: WidthPlan,
    model: PreTrainedModel,
    workload: Workload,
    *,
    gpu: bool,
    free: FreeMemory | None = None,
) -> list[Stage]:
    """Compute the peak of every stage that a run will have.

    Args:
        request: what is asked for.
        plan: of the model.
        model: before pruning; may be on the meta device.
        workload: the calibration text.
        gpu: whether layers are computed on a GPU; without one all is counted as the host's.
        free: what adapts to the memory that there is, such as batches, is counted as with this
            much; None: at its smallest.
    """
    return _stages(Terms(request, plan, model, workload, gpu, free))


def _stages(t: Terms) -> list[Stage]:
    request = t.request
    found = []
    if t.surveyed.atlas:
        found.append(_survey(t))
    if request.own_text or request.repair.windows_to_write:
        found.append(_own_text(t))
    if request.repair.tunes_the_model:
        found.append(_predictions(t))
    if t.reads_own_text:
        found.append(_own_moments(t))
    if request.needs & {"output_gradients", "weight_gradients"}:
        found.append(_gradients(t))
    if t.plan.heads is not None:
        found.append(_heads(t))
    found += [_calibration(t), _scoring(t), _repair(t)]
    if request.repair.tunes_the_model:
        found.append(_distillation(t))
    return [*found, _saving(t)]


def _own_text(t: Terms) -> Stage:
    request, work = t.request, t.work
    most = 0
    for wanted, longest in (
        (PER_SAMPLE * (request.own_text > 0), OWN_LENGTH),
        (request.repair.windows_to_write, CONTINUED_LENGTH),
    ):
        window = min(work.length, longest)
        at_once = windows_within(t.left, t.model, window, t.device)
        windows = min(at_once, work.samples * wanted)
        most = max(most, windows * bytes_per_window(t.model, window))
    return t.whole_model(stages.OWN_TEXT, [t.here("windows that are written", most)])


def _predictions(t: Terms) -> Stage:
    return t.whole_model(
        stages.PREDICTIONS,
        [t.here("a batch", t.batch_bytes()), t.predicted()],
    )


def _gradients(t: Terms) -> Stage:
    found = [
        t.here("gradients", t.gradient_bytes()),
        *t.later("their means", t.gradient_bytes()),
        t.predicted(),
    ]
    kept, again = t.backward_passes()
    return t.whole_model(stages.GRADIENTS, [kept, *found], [again, *found])


def _distillation(t: Terms) -> Stage:
    numbers = t.request.repair.tuning_bytes(t.plan.layout.blocks)
    tuned = t.here("what is tuned", numbers)
    kept, again = t.backward_passes()
    others = [tuned, t.predicted(), t.cut_weights()]
    waiting = t.later("weights", t.sizes.weights)  # as calibration left them
    return t.whole_model(stages.DISTILLATION, [*waiting, kept, *others], [again, *others])


def _own_moments(t: Terms) -> Stage:
    one = max((8 * unit.n_columns**2 for unit in t.units), default=0)
    own = Workload(t.work.samples * PER_SAMPLE, min(t.work.length, OWN_LENGTH))
    return Stage(
        stages.OWN_MOMENTS,
        (
            Term("weights", host=t.sizes.weights),
            *t.a_layer(),
            t.states(own.tokens),
            Term("moments of all layers", host=t.moments_bytes() + one),
            t.predicted(),
            *t.of_gpu("moments", one),
            t.here("a batch", t.batch_bytes(own) + t.product_bytes()),
        ),
    )


def _heads(t: Terms) -> Stage:
    heads, blocks = t.plan.heads.units, t.plan.layout.blocks
    measured = (*heads, *(blocks if t.plan.heads_are_open else ()))
    one = max(8 * unit.n_columns**2 for unit in measured)
    widest = max(unit.n_columns for unit in measured)
    product = product_bytes(widest, t.sizes.itemsize, t.device)
    return Stage(
        stages.HEADS,
        (
            Term("weights", host=t.sizes.weights),
            *t.a_layer(),
            t.states(t.work.tokens),
            Term("moments of all heads", host=sum(8 * u.n_columns**2 for u in heads)),
            # those of one layer, and the copies that ordering them takes
            t.here("moments of a layer", 4 * one),
            *t.held("gradients", t.gradient_bytes()),
            *t.held("moments of own text", t.moments_bytes() if t.reads_own_text else 0),
            t.predicted(),
            t.here("a batch", t.batch_bytes() + product),
        ),
    )


def _survey(t: Terms) -> Stage:
    networks, setting, work = t.surveyed.networks, t.surveyed.setting, t.work
    most = max((networks.working_bytes(u, work, setting) for u in t.units), default=0)
    across = networks.across_bytes(t.units, work)
    n_blocks = 1 if networks.window is None else math.ceil(len(t.units) / networks.window)
    count = n_blocks * networks.n_components
    signals = sum(len(networks.signals_of(unit)) * unit.width for unit in t.units)
    # of every group one start, and all of one block are compared
    groups = max(1, work.samples // networks.samples_per_group)
    maps = 4 * networks.n_components * signals * groups
    return Stage(
        stages.SURVEY,
        (
            Term("weights", host=t.sizes.weights),
            *t.a_layer(),
            t.states(work.tokens),
            Term("time courses", host=4 * work.tokens * count),
            Term("maps", host=maps),
            t.here("a batch", t.batch_bytes()),
            t.here("finding networks", most + across),
            Term("how networks act together", host=structure_bytes(count)),
        ),
    )


def _calibration(t: Terms) -> Stage:
    working = max((t.signal_bytes(unit) for unit in t.units), default=0)
    return Stage(
        stages.CALIBRATION,
        (*t.pipeline(), *t.statistics(), t.here("signals of a group", working)),
    )


def _scoring(t: Terms) -> Stage:
    setting = t.request.setting
    found = [
        (scorer.working_bytes(unit, t.work, setting), scorer.name)
        for scorer in t.request.scorers
        for unit in t.units
    ]
    most, name = max(found, default=(0, "scores"))
    return Stage(
        stages.SCORING,
        (*t.pipeline(), *t.statistics(), t.here(f"scoring by {name}", most)),
    )


def _repair(t: Terms) -> Stage:
    repair = t.request.repair
    terms = [*t.pipeline(running=False), *t.statistics(running=False)]
    working = [repair.working_bytes(u, t.plan.expected_columns(u)) for u in t.units]
    terms.append(t.here(f"repair by {repair.name}", max(working, default=0)))
    return Stage(stages.REPAIR, tuple(terms))


def _saving(t: Terms) -> Stage:
    weights = Term("weights", host=t.sizes.weights)
    return Stage(stages.SAVING, (weights, t.cut_weights()))
