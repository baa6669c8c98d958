"""Measures, scores, cuts and repairs a model: one object, which knows no host."""

from funcnet_plugin.run.request import Request
from funcnet_plugin.run.run import Run

__all__ = ["Request", "Run"]
