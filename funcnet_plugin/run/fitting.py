"""Compares what a run needs with what there is, and looks for the nearest run that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.errors import FuncnetError, RoomError
from funcnet_plugin.measure.free_memory import FreeMemory
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.repair.least_squares import LeastSquares
from funcnet_plugin.run.memory import memory
from funcnet_plugin.run.request import Request
from funcnet_plugin.run.stages import Stage
from funcnet_plugin.screen import size

_CLEARLY = 1.2  # the formula is right within a fifth
_FEWEST, _SHORTEST = 32, 128  # samples, and tokens of each, that are worth proposing
_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
_LIMITS = ("4GB", "2GB", "1GB", "500MB")
_Count = Callable[[Request, Workload], list[Stage]]


@dataclass(frozen=True)
class _Short:
    """Says what one stage lacks: bytes needed and there."""

    stage: str
    where: str
    needed: int
    there: int
    only_slow: bool  # or it cannot run


@dataclass(frozen=True)
class _Change:
    """Holds another run than was asked for, and what is said of it."""

    said: tuple[str, ...]
    request: Request
    workload: Workload

    def then(self, said: str, **changed: Any) -> _Change:
        return replace(self, said=(*self.said, said), **changed)


def check_fits(
    request: Request,
    plan: WidthPlan,
    model: nn.Module,
    workload: Workload,
    free: FreeMemory,
    loaded: int = 0,
) -> str | None:
    """Refuse a run that clearly does not fit into memory.

    Args:
        request, plan, model, workload: see `memory`.
        free: what there is.
        loaded: bytes of the model that are in the host's memory already.

    Returns:
        a warning where it is not sure, or where a GPU will be sent weights again and again; None
            where all fits.

    Raises:
        RoomError: names the stage, what it needs, what there is, and what would fit.
    """

    def count(request: Request, workload: Workload) -> list[Stage]:
        return memory(request, plan, model, workload, gpu=free.gpu is not None)

    short = _short(count(request, workload), free, loaded, 1.0)
    if not short:
        return None
    worst = max(short, key=lambda s: (not s.only_slow, s.needed / max(s.there, 1)))
    said = (
        f"the stage {worst.stage!r} needs about {size(worst.needed)} GB of {worst.where} and "
        f"{size(worst.there)} GB are free"
    )
    if worst.only_slow:
        return f"{said}; weights are sent there for every batch, which may take long."
    generous = replace(free, host=free.host + free.swap)
    clearly = _short(count(request, workload), generous, loaded, _CLEARLY)
    advice = _advice(count, request, plan, workload, free, loaded)
    if any(not s.only_slow for s in clearly):
        raise RoomError(f"{said}; {advice}.")
    return f"{said}, so the run may fail; {advice}."


def _short(stages: Sequence[Stage], free: FreeMemory, loaded: int, clearly: float) -> list[_Short]:
    found = []
    for stage in stages:
        if free.gpu is not None and stage.gpu > clearly * free.gpu:
            slow = stage.sent is not None
            found.append(_Short(stage.name, "the GPU's memory", stage.gpu, free.gpu, slow))
            if slow:
                sent = Stage(stage.name, stage.sent)
                found += _short([sent], free, loaded, clearly)
                continue
        host = stage.host - loaded
        if host > clearly * free.host:
            found.append(_Short(stage.name, "the host's memory", host, free.host, False))
    return found


def _advice(
    count: _Count,
    request: Request,
    plan: WidthPlan,
    workload: Workload,
    free: FreeMemory,
    loaded: int,
) -> str:
    """Say what would fit, by trying."""

    def fits(change: _Change) -> bool:
        short = _short(count(change.request, change.workload), free, loaded, 1.0)
        return all(s.only_slow for s in short)

    start = _Change((), request, workload)
    single = [
        *_of_recipe(start, plan),
        *_first(fits, _fewer(start)),
        *_first(fits, _shorter(start)),
    ]
    if found := [change.said[-1] for change in single if fits(change)]:
        return f"what fits: {', or '.join(found)}"
    most = start
    while more := next(_of_recipe(most, plan), None):
        most = more
    for change in (most, *_fewer(most), *_shorter(most), *_shorter(_last(_fewer(most), most))):
        if fits(change):
            return f"what fits: {' and '.join(change.said)} together"
    return "none of the smaller runs that were tried fits; take a larger machine or a smaller model"


def _first(fits: Callable[[_Change], bool], changes: Iterator[_Change]) -> Iterator[_Change]:
    yield from [change for change in changes if fits(change)][:1]


def _last(changes: Iterator[_Change], otherwise: _Change) -> _Change:
    return [otherwise, *changes][-1]


def _of_recipe(start: _Change, plan: WidthPlan) -> Iterator[_Change]:
    """Change one thing in the recipe, what costs least quality first."""
    request, samples = start.request, start.workload.samples
    if "samples" in request.needs and not request.max_memory:
        for limit in _LIMITS:
            limited = replace(request, max_memory=limit)
            if _possible(limited, plan, samples):
                yield start.then(f"max_memory: {limit}", request=limited)
    if request.own_text:
        yield start.then("own_text: 0", request=replace(request, own_text=0.0))
    if request.repair.tunes_the_model:
        yield start.then("repair: least_squares", request=replace(request, repair=LeastSquares()))


def _possible(request: Request, plan: WidthPlan, samples: int) -> bool:
    try:
        for scorer in request.scorers:
            scorer.check(plan.prunable, samples, request.setting)
    except FuncnetError:
        return False
    return True


def _fewer(start: _Change) -> Iterator[_Change]:
    """Take fewer samples, in whole groups."""
    group = start.request.group_size
    for share in _SHARES:
        samples = int(start.workload.samples * share) // group * group
        if samples >= max(_FEWEST, group):
            yield start.then(
                f"{samples} samples", workload=replace(start.workload, samples=samples)
            )


def _shorter(start: _Change) -> Iterator[_Change]:
    """Take shorter samples."""
    for share in _SHARES:
        length = int(start.workload.length * share)
        if length >= _SHORTEST:
            shorter = replace(start.workload, length=length)
            yield start.then(f"samples of {length} tokens", workload=shorter)
