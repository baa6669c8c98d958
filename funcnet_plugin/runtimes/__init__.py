"""Tells which runtimes load a checkpoint, which need an export of it, and what its widths cost."""

from funcnet_plugin.runtimes.checkpoint import Checkpoint, read_checkpoint
from funcnet_plugin.runtimes.grids import Grids, grids
from funcnet_plugin.runtimes.ways import Way, ways

__all__ = ["Checkpoint", "Grids", "Way", "grids", "read_checkpoint", "ways"]
