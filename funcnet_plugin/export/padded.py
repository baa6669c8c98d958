"""Fills layers up with neurons that do nothing: any program reads that, and nothing is saved."""

from __future__ import annotations

from pathlib import Path

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import BLOCK_KEY, set_widths
from funcnet_plugin.cut.surgery import pad_with_zeros
from funcnet_plugin.export.files import copy_side_files, load_full_precision, save


def export(source: Path, out: Path) -> None:
    """Write a stock checkpoint whose layers all have the width of the widest.

    Args:
        source: a checkpoint directory, uniform or per-layer.
        out: an existing, empty directory.
    """
    model = load_full_precision(source)
    layout = bind(model)
    width = max(layout.widths)
    for block in layout.blocks:
        pad_with_zeros(block, width)
    set_widths(model.config, layout.adapter.width_key, layout.widths)
    described = getattr(model.config, BLOCK_KEY, None)
    if described is not None:
        setattr(model.config, BLOCK_KEY, described | {"padded_to": width})
    save(model, out)
    copy_side_files(source, out)
