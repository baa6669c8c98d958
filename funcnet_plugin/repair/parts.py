"""Lists the repairs that a recipe can name: ours, and those of other packages."""

from __future__ import annotations

from funcnet_plugin.measure.statistics import unknown_statistics
from funcnet_plugin.plugins import Registry
from funcnet_plugin.repair import bias, distillation, least_squares, none, repair
from funcnet_plugin.repair.repair import Repair

# What is measured of a unit besides moments is let go before it is cut.
_KEPT = frozenset({"moments"})
_GONE = {"reconstruction": "it lost on a real model; take distillation"}


def _problem(part: type[Repair]) -> str | None:
    unknown = unknown_statistics(part.needs)
    if unknown is None and (more := frozenset(part.needs) - _KEPT):
        return f"needs {', '.join(sorted(more))}, and a repair gets moments only"
    return unknown


REPAIRS = Registry(
    "repair",
    Repair,
    repair,
    [none, bias, least_squares, distillation],
    problem=_problem,
    gone=_GONE,
)
