"""Writes what a bench found beside its rows."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from funcnet_plugin.bench.plot import write_plot
from funcnet_plugin.bench.table import markdown
from funcnet_plugin.disk import saying_full


def write_results(found: Mapping[str, Any], out: Path) -> None:
    """Write bench.json, bench.md and bench.png, each whole or not at all.

    Args:
        found: see `results.document`.
        out: an existing directory; earlier results are replaced.
    """
    with saying_full(out), tempfile.TemporaryDirectory(dir=out, prefix=".bench-") as folder:
        made = Path(folder)
        (made / "bench.json").write_text(json.dumps(found, indent=2) + "\n")
        (made / "bench.md").write_text(markdown(found))
        write_plot(found, made / "bench.png")
        for path in made.iterdir():
            os.replace(path, out / path.name)
