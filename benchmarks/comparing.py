"""Runs `funcnet compare` for a benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from controls import known_fields, method_arguments

FUNCNET = str(Path(sys.executable).with_name("funcnet"))  # of this environment


def run_compare(
    model: str | Path,
    out: Path,
    recipes: Path,
    methods: Iterable[str],
    fields: Mapping[str, Any],
    arguments: Iterable[str],
    **repeated: Iterable[Any],
) -> list[dict[str, Any]]:
    """Compare; what `out` holds already is not measured again.

    Args:
        recipes: a folder for the recipes of controls.
        methods: known names or those of `controls.CONTROLS`.
        fields: of recipes; one that no method knows is left out.
        arguments: further ones, as they are.
        repeated: options that may stand several times, by name, and their values.

    Returns:
        the rows, the dense model first.

    Raises:
        CalledProcessError: it ended with an error, which it has said.
    """
    methods = list(methods)
    known = known_fields(fields, methods)
    command = [FUNCNET, "compare", str(model), "--out", str(out), "--json", *arguments]
    values = {
        "method": method_arguments(methods, recipes),
        "set": [f"{name}={value}" for name, value in known.items()],
        **repeated,
    }
    for option, several in values.items():
        for value in several:
            command += [f"--{option}", str(value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)
