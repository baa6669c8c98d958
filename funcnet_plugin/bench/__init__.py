"""`funcnet bench`: how fast models run, side by side, and what of it their widths give."""

from funcnet_plugin.bench.load import Load, parse_load
from funcnet_plugin.bench.plan import Bench
from funcnet_plugin.bench.run import bench
from funcnet_plugin.bench.writing import write_results

__all__ = ["Bench", "Load", "bench", "parse_load", "write_results"]
