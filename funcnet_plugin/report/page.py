"""Writes the page: template, style, script, plotly and the content in one file."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.report.content import content_of

_PARTS = files("funcnet_plugin.report")


def write_report(
    atlas: Path, out: Path, lesions: Path | None = None, pruned: Path | None = None
) -> None:
    """Write the page of an atlas.

    Args:
        atlas: directory.
        out: an HTML file; one that is there is replaced.
        lesions: directory of a study of lesions.
        pruned: checkpoint of a model that was cut, or its kept_neurons.json.

    Raises:
        FuncnetError: one sentence on what cannot be read or written.
    """
    from funcnet_plugin.checkpoints.block import read_kept

    if out.suffix.lower() not in (".html", ".htm"):
        raise FuncnetError(f"{out} is no HTML file; give one that ends in .html.")
    kept = None if pruned is None else read_kept(pruned)[1]
    content = content_of(atlas, lesions, kept)
    with saying_full(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        part.write_text(_page(content), encoding="utf-8")
        part.replace(out)


def _page(content: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    # The text of the data never becomes markup: it stands in JSON whose "<" are escaped, and the
    # script shows it as text.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    page = (_PARTS / "page.html").read_text(encoding="utf-8")
    for name, text in (
        ("style", (_PARTS / "page.css").read_text(encoding="utf-8")),
        ("plotly", get_plotlyjs()),
        ("connectivity", (_PARTS / "connectivity.js").read_text(encoding="utf-8")),
        ("script", (_PARTS / "page.js").read_text(encoding="utf-8")),
        ("data", data),  # last: nothing in it is taken for a place of another part
    ):
        page = page.replace(f"<!--{name}-->", text, 1)
    return page
