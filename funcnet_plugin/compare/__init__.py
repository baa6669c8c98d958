"""`funcnet compare`: pruning methods side by side, in and out of the domain of calibration."""

from funcnet_plugin.compare import table
from funcnet_plugin.compare.methods import METHODS
from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.compare.plots import write_plots
from funcnet_plugin.compare.run import compare

__all__ = ["METHODS", "Comparison", "compare", "table", "write_plots"]
