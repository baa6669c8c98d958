"""The peak memory of a run is the process's own."""

import subprocess
import sys

import pytest
import torch

CHILD = """
import psutil
from funcnet_plugin.run.clock import peak_bytes
print(peak_bytes()[0], psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hand a peak on")
def test_a_large_parent_is_not_counted():
    much = torch.ones(2**28)  # 1 GB, more than the child needs
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())
    assert 0.9 * now <= peak < now + much.nbytes / 2
