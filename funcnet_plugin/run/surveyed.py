"""Leaves the atlas of a model before it is pruned, and takes the scores of networks from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas import read_atlas, write_atlas
from funcnet_plugin.atlas.checks import check_weights, check_widths
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.measure.text import Text
from funcnet_plugin.output import check_output
from funcnet_plugin.run.request import Request
from funcnet_plugin.survey import survey


def check_place(request: Request) -> None:
    """Refuse to write an atlas among other files.

    Raises:
        FuncnetError: the directory holds something else, or cannot be written.
    """
    if not _is_there(request):
        check_output(Path(request.atlas))


def leave_atlas(
    request: Request,
    model: nn.Module,
    units: Sequence[Unit],
    wanted: Sequence[Unit],
    text: Text,
    decode: Callable[[int], str],
) -> None:
    """Survey the model, unless its atlas is there already.

    Args:
        request: with `atlas`.
        units: of all layers, in order.
        wanted: those that may be cut.
        text: the calibration data.
        decode: gives the text of a token.

    Raises:
        FuncnetError: the atlas that is there is of another run, or there can be none.
    """
    directory = Path(request.atlas)
    setting = replace(request.setting, n_samples=len(text.samples))
    if not _is_there(request):
        found = survey(model, units, text, request.networks, setting, decode, wanted)
        write_atlas(directory, found.atlas, found.courses, found.contexts, found.connectivity)
        return
    atlas = read_atlas(directory)
    check_widths(atlas, wanted, request.atlas)
    check_weights(atlas, wanted, request.atlas)
    scorer = json.loads(json.dumps(request.networks.settings()))
    known = atlas.facts["settings"]
    differ = [
        what
        for what, same in (
            ("its data", atlas.facts["data"]["fingerprint"] == text.fingerprint()),
            ("the parameters of its networks", known["scorer"] == scorer),
            ("its seed", known["seed"] == request.seed),
            ("its layers", {unit.index for unit in wanted} <= atlas.scores.keys()),
        )
        if not same
    ]
    if differ:
        raise AtlasError(
            f"the atlas {directory} is of another run: {', '.join(differ)} differ; give another "
            "directory, or take it as it is with the scorer {name: atlas, path: "
            f"{directory}}}."
        )


def _is_there(request: Request) -> bool:
    return Path(request.atlas, "atlas.json").exists()
