"""Repairs nothing: the plain cut."""

from __future__ import annotations

from funcnet_plugin.adapters import Unit
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.repair.repair import Cut, Repair, Repaired


class NoRepair(Repair):
    """Leaves the weights of the kept neurons as they are."""

    name = "none"

    def repaired(self, cut: Cut) -> Repaired:
        return Repaired()

    def working_bytes(self, unit: Unit, kept: int) -> int:
        return 0


@hookimpl
def funcnet_repairs() -> list[type[Repair]]:
    return [NoRepair]
