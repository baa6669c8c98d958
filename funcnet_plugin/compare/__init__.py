"""`funcnet compare`: pruning methods side by side, in and out of the domain of calibration."""

from funcnet_plugin.compare import table
from funcnet_plugin.compare.methods import METHODS
from funcnet_plugin.compare.run import Comparison, compare

__all__ = ["METHODS", "Comparison", "compare", "table"]
