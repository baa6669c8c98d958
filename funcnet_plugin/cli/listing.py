"""What is installed: adapters, and the parts that a recipe can name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from funcnet_plugin.plugins import FoundPart


def list_adapters(as_json: bool) -> None:
    """Print every adapter, who brings it, and for which architectures it is used."""
    from funcnet_plugin.adapters.manager import find_adapters

    rows = [
        {"name": f.adapter.name, "source": f.source, "architectures": list(f.architectures)}
        for f in find_adapters()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("adapter", "source", "architectures")
    for row in rows:
        table.add_row(row["name"], row["source"], ", ".join(row["architectures"]))
    Console().print(table)


def list_parts(as_json: bool) -> None:
    """Print every scorer, repair and decomposer, who brings it, and what it can be given."""
    from funcnet_plugin.ica.parts import DECOMPOSERS
    from funcnet_plugin.repair.parts import REPAIRS
    from funcnet_plugin.score.parts import SCORERS

    kinds = {"scorer": SCORERS, "repair": REPAIRS, "decomposer": DECOMPOSERS}
    rows = [
        _described(kind, name, found)
        for kind, registry in kinds.items()
        for name, found in registry.find().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    console = Console(highlight=False, markup=False)
    for kind in kinds:
        console.print(f"{kind}s")
        for row in (row for row in rows if row["kind"] == kind):
            console.print(f"  {row['name']} ({row['source']})")
            given = [f"{name} (required)" for name in row["required"]]
            given += [f"{name}: {value}" for name, value in row["parameters"].items()]
            for text in filter(None, (row["about"], ", ".join(given))):
                console.print(Padding(text, (0, 0, 0, 6)))


def _described(kind: str, name: str, found: FoundPart) -> Mapping[str, Any]:
    defaults = found.part.defaults()
    return {
        "kind": kind,
        "name": name,
        "source": found.package,
        "parameters": defaults,
        "required": [p for p in found.part.parameters() if p not in defaults],
        "about": (found.part.__doc__ or "").strip().partition("\n")[0],
    }
