"""Estimates how long the stages of a run take: operations, by a pace that is timed.

It is an order of magnitude to decide by, and called "about": operations of different kinds do not
go at one pace. The bars of the stages know better, once they have begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.offload import OffloadCache
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.measure.free_memory import FreeMemory
from funcnet_plugin.measure.layer_calls import layer_calls
from funcnet_plugin.measure.moments import product_operations
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.run import stages
from funcnet_plugin.run.request import Request
from funcnet_plugin.text.at_once import windows_within
from funcnet_plugin.text.own import CONTINUED_LENGTH, OWN_LENGTH, PER_SAMPLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SECONDS = 0.1  # for which a layer is run again and again
_MOST = 10  # runs of it
_SIDE, _PRODUCTS = 768, 4  # of the matrices, and how many products are timed
_DOUBLE = 2.0  # how much longer a product of float64 takes
_BACKWARD = 2.0  # passes forward that one backward takes
_ORDERING = 6.0  # of columns^3: inverting, and taking groups out of the inverse one by one
_SLOWEST = 16  # tokens that are as fast as one: a step of writing reads all weights


@torch.no_grad()
def layer_seconds(model: nn.Module, units: Sequence[Unit], ids: Tensor) -> float:
    """Time one decoder layer on some text, where its weights lie.

    Args:
        units: of all layers, in order.
        ids: (batch, length), int64.

    Returns:
        seconds of one call.
    """
    calls, hidden = layer_calls(model, units, ids, torch.ones_like(ids))
    unit, call = units[0], calls[0]
    with _where_it_will_run(unit.decoder_layer):
        call = replace(call, args=_moved(call.args, unit), kwargs=_moved(call.kwargs, unit))
        call.run(unit, hidden).cpu()  # the first call makes room
        start, runs = time.perf_counter(), 0
        while runs < _MOST and time.perf_counter() - start < _SECONDS:
            call.run(unit, hidden).cpu()
            runs += 1
        return (time.perf_counter() - start) / runs


@contextmanager
def _where_it_will_run(layer: nn.Module) -> Iterator[None]:
    """Bring a layer that waits on the CPU to the GPU, as calibration will, and back."""
    offloaded = any(isinstance(m._parameters, OffloadCache) for m in layer.modules())
    waits = not offloaded and all(p.device.type == "cpu" for p in layer.parameters())
    if not torch.cuda.is_available() or not waits:
        yield
        return
    try:
        layer.to("cuda")
        yield
    finally:
        layer.to("cpu")


def _moved(value: Any, unit: Unit) -> Any:
    """Bring what a layer is called with to where it is."""
    if isinstance(value, Tensor):
        return value.to(unit.device)
    if isinstance(value, tuple):
        return tuple(_moved(one, unit) for one in value)
    if isinstance(value, dict):
        return {key: _moved(one, unit) for key, one in value.items()}
    return value


def product_pace(device: torch.device) -> float:
    """Time products of float32 matrices, as statistics, decompositions and repairs take them.

    Returns:
        multiplications and additions per second.
    """
    square = torch.ones(_SIDE, _SIDE, device=device)
    float((square @ square).sum())  # the first call makes room
    start = time.perf_counter()
    for _ in range(_PRODUCTS):
        float((square @ square).sum())
    return _PRODUCTS * 2.0 * _SIDE**3 / (time.perf_counter() - start)


def estimate(
    request: Request,
    plan: WidthPlan,
    model: PreTrainedModel,
    work: Workload,
    free: FreeMemory,
    per_token: float,
    pace: float,
) -> dict[str, float]:
    """Estimate the seconds of each stage.

    Args:
        request, plan: of the run.
        model: before pruning; may be on the meta device.
        work: the calibration text.
        free: with the weights of the model in the host's memory.
        per_token: seconds of one token in one layer, see `layer_seconds`.
        pace: see `product_pace`.

    Returns:
        name of the stage -> seconds; saving is not among them.
    """
    surveyed, request = request, request.behind_survey
    units, repair, layers = plan.prunable, request.repair, len(plan.layout.blocks)
    device, there = ("cpu", free.host) if free.gpu is None else ("cuda", free.gpu)
    whole = layers * per_token  # of one token
    forward = whole * work.tokens
    found: dict[str, float] = {}
    if surveyed.atlas:
        finding = sum(surveyed.networks.operations(unit, work) for unit in units)
        found[stages.SURVEY] = 2 * forward + finding / pace
    own = PER_SAMPLE * (request.own_text > 0) * work.samples
    continued = repair.windows_to_write * work.samples
    lengths = (min(work.length, OWN_LENGTH), min(work.length, CONTINUED_LENGTH))
    if own or continued:
        found[stages.OWN_TEXT] = 0.0
        for windows, length in zip((own, continued), lengths, strict=True):
            at_once = max(1, min(windows, windows_within(there, model, length, device)))
            steps = math.ceil(windows / at_once) * length
            # a step of few windows reads all weights, too
            found[stages.OWN_TEXT] += steps * whole * max(at_once, _SLOWEST)
    asked = len(request.needs & {"output_gradients", "weight_gradients"})
    if asked:
        found[stages.GRADIENTS] = asked * (1 + _BACKWARD) * forward
    moments = sum(product_operations(unit.n_columns, device) for unit in units) / pace
    if "moments" not in request.needs:
        moments = 0.0
    if request.own_text:
        found[stages.OWN_MOMENTS] = own * lengths[0] * (whole + moments)
    if plan.heads is not None:
        measured = [*plan.heads.units, *(plan.layout.blocks if plan.heads_are_open else ())]
        products = sum(product_operations(unit.n_columns, device) for unit in measured) / pace
        ordering = sum(_ORDERING * unit.n_columns**3 for unit in measured) / pace
        passes = 2 if plan.heads_are_open else 1
        found[stages.HEADS] = passes * forward + work.tokens * products + _DOUBLE * ordering
    found[stages.CALIBRATION] = 2 * forward + work.tokens * moments
    scoring = sum(s.operations(unit, work) for s in request.scorers for unit in units)
    found[stages.SCORING] = scoring / pace
    tokens = work.tokens + own * lengths[0] + continued * lengths[1]
    solving = sum(repair.operations(unit, plan.expected_columns(unit), tokens) for unit in units)
    found[stages.REPAIR] = _DOUBLE * solving / pace
    if repair.tunes_the_model:
        found[stages.PREDICTIONS] = tokens * whole
        found[stages.DISTILLATION] = repair.tuning_passes * tokens * (1 + _BACKWARD) * whole
    return found
