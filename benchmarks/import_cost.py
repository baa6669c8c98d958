"""What being found by `import torch` costs, in milliseconds: median of fresh processes.

    python benchmarks/import_cost.py

Each process imports torch with its autoload off, scans the entry points (torch does that with or
without us), and then loads and calls ours.
"""

import os
import statistics
import subprocess
import sys

CODE = """
import time, torch
from importlib.metadata import entry_points
(ours,) = [e for e in entry_points(group="torch.backends") if e.name == "funcnet_plugin"]
start = time.perf_counter()
ours.load()()
print(1000 * (time.perf_counter() - start))
"""

if __name__ == "__main__":
    env = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    times = [
        float(subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True,
                             text=True, env=env).stdout)
        for _ in range(12)
    ]  # fmt: skip
    print(f"{statistics.median(times[1:]):.2f} ms (of {len(times) - 1}, after one warm-up)")
