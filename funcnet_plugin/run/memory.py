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


def _stages(terms: Terms) -> list[Stage]:
    request = terms.request
    found = []
    if terms.surveyed.atlas:
        found.append(_survey(terms))
    if request.own_text or request.repair.windows_to_write:
        found.append(_own_text(terms))
    if request.repair.tunes_the_model:
        found.append(_predictions(terms))
    if terms.reads_own_text:
        found.append(_own_moments(terms))
    if request.needs & {"output_gradients", "weight_gradients"}:
        found.append(_gradients(terms))
    if terms.plan.heads is not None:
        found.append(_heads(terms))
    found += [_calibration(terms), _scoring(terms), _repair(terms)]
    if request.repair.tunes_the_model:
        found.append(_distillation(terms))
    return [*found, _saving(terms)]


def _own_text(terms: Terms) -> Stage:
    request, work = terms.request, terms.work
    most = 0
    for wanted, longest in (
        (PER_SAMPLE * (request.own_text > 0), OWN_LENGTH),
        (request.repair.windows_to_write, CONTINUED_LENGTH),
    ):
        window = min(work.length, longest)
        at_once = windows_within(terms.left, terms.model, window, terms.device)
        windows = min(at_once, work.samples * wanted)
        most = max(most, windows * bytes_per_window(terms.model, window))
    return terms.whole_model(stages.OWN_TEXT, [terms.here("windows that are written", most)])


def _predictions(terms: Terms) -> Stage:
    return terms.whole_model(
        stages.PREDICTIONS,
        [terms.here("a batch", terms.batch_bytes()), terms.predicted()],
    )


def _gradients(terms: Terms) -> Stage:
    found = [
        terms.here("gradients", terms.gradient_bytes()),
        *terms.later("their means", terms.gradient_bytes()),
        terms.predicted(),
    ]
    kept, again = terms.backward_passes()
    return terms.whole_model(stages.GRADIENTS, [kept, *found], [again, *found])


def _distillation(terms: Terms) -> Stage:
    numbers = terms.request.repair.tuning_bytes(terms.plan.layout.blocks)
    tuned = terms.here("what is tuned", numbers)
    kept, again = terms.backward_passes(compared=True)
    others = [tuned, terms.predicted(), terms.cut_weights()]
    waiting = terms.later("weights", terms.sizes.weights)  # as calibration left them
    return terms.whole_model(stages.DISTILLATION, [*waiting, kept, *others], [again, *others])


def _own_moments(terms: Terms) -> Stage:
    one = max((8 * unit.n_columns**2 for unit in terms.units), default=0)
    own = Workload(terms.work.samples * PER_SAMPLE, min(terms.work.length, OWN_LENGTH))
    return Stage(
        stages.OWN_MOMENTS,
        (
            Term("weights", host=terms.sizes.weights),
            *terms.a_layer(),
            terms.states(own.tokens),
            Term("moments of all layers", host=terms.moments_bytes() + one),
            terms.predicted(),
            *terms.of_gpu("moments", one),
            terms.here("a batch", terms.batch_bytes(own) + terms.product_bytes()),
        ),
    )


def _heads(terms: Terms) -> Stage:
    heads, blocks = terms.plan.heads.units, terms.plan.layout.blocks
    measured = (*heads, *(blocks if terms.plan.heads_are_open else ()))
    one = max(8 * unit.n_columns**2 for unit in measured)
    widest = max(unit.n_columns for unit in measured)
    product = product_bytes(widest, terms.sizes.itemsize, terms.device)
    return Stage(
        stages.HEADS,
        (
            Term("weights", host=terms.sizes.weights),
            *terms.a_layer(),
            terms.states(terms.work.tokens),
            Term("moments of all heads", host=sum(8 * u.n_columns**2 for u in heads)),
            # those of one layer, and the copies that ordering them takes
            terms.here("moments of a layer", 4 * one),
            *terms.held("gradients", terms.gradient_bytes()),
            *terms.held(
                "moments of own text", terms.moments_bytes() if terms.reads_own_text else 0
            ),
            terms.predicted(),
            terms.here("a batch", terms.batch_bytes() + product),
        ),
    )


def _survey(terms: Terms) -> Stage:
    networks, setting, work = terms.surveyed.networks, terms.surveyed.setting, terms.work
    most = max((networks.working_bytes(u, work, setting) for u in terms.units), default=0)
    across = networks.across_bytes(terms.units, work)
    n_blocks = 1 if networks.window is None else math.ceil(len(terms.units) / networks.window)
    count = n_blocks * networks.n_components
    signals = sum(len(networks.signals_of(unit)) * unit.width for unit in terms.units)
    # of every group one start, and all of one block are compared
    groups = max(1, work.samples // networks.samples_per_group)
    maps = 4 * networks.n_components * signals * groups
    return Stage(
        stages.SURVEY,
        (
            Term("weights", host=terms.sizes.weights),
            *terms.a_layer(),
            terms.states(work.tokens),
            Term("time courses", host=4 * work.tokens * count),
            Term("maps", host=maps),
            terms.here("a batch", terms.batch_bytes()),
            terms.here("finding networks", most + across),
            Term("how networks act together", host=structure_bytes(count)),
        ),
    )


def _calibration(terms: Terms) -> Stage:
    working = max((terms.signal_bytes(unit) for unit in terms.units), default=0)
    return Stage(
        stages.CALIBRATION,
        (*terms.pipeline(), *terms.statistics(), terms.here("signals of a group", working)),
    )


def _scoring(terms: Terms) -> Stage:
    setting = terms.request.setting
    found = [
        (scorer.working_bytes(unit, terms.work, setting), scorer.name)
        for scorer in terms.request.scorers
        for unit in terms.units
    ]
    most, name = max(found, default=(0, "scores"))
    return Stage(
        stages.SCORING,
        (*terms.pipeline(), *terms.statistics(), terms.here(f"scoring by {name}", most)),
    )


def _repair(terms: Terms) -> Stage:
    repair = terms.request.repair
    working = [repair.working_bytes(u, terms.plan.expected_columns(u)) for u in terms.units]
    return Stage(
        stages.REPAIR,
        (
            *terms.pipeline(running=False),
            *terms.statistics(running=False),
            terms.here(f"repair by {repair.name}", max(working, default=0)),
        ),
    )


def _saving(terms: Terms) -> Stage:
    weights = Term("weights", host=terms.sizes.weights)
    return Stage(stages.SAVING, (weights, terms.cut_weights()))
