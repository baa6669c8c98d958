"""Measures the peak memory of one model in a process of its own.

    python -m funcnet_plugin.bench.alone QUESTION

Beside other models in one process it could not be told whose memory it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from funcnet_plugin.bars import ticking
from funcnet_plugin.bench.backends import Runtime, Setting, find_runtime
from funcnet_plugin.bench.load import Load
from funcnet_plugin.bench.models import Model
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.evaluation.usage import Usage

_IN_THEIR_OWN = ("vllm",)  # runs in other processes, and takes what it is given


def peak_memory(name: str, source: Path, runtime: Runtime, setting: Setting) -> int | None:
    """Give the peak in bytes of a new process that loads a model and runs its longest load once.

    It is resident memory above what the process held before, with CUDA what torch allocates there;
    None where it is not the model's to say.

    Args:
        name: of the model.
        source: what the backend reads; making it takes memory, too, which is not the model's.

    Raises:
        FuncnetError: the process failed.
    """
    import torch

    base = runtime.name.partition(":")[0]
    if base in _IN_THEIR_OWN or (torch.cuda.is_available() and base != "transformers"):
        return None
    question = {
        "name": name, "path": str(source), "setting": asdict(setting),
        "runtime": runtime.name if Model(name, source).kind == "checkpoint" else base,
    }  # fmt: skip
    with ticking(f"memory of {name}, {runtime.name}"):
        asked = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(question)], capture_output=True, text=True
        )
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise FuncnetError(f"the memory of {name} could not be measured: {why}")
    return int(json.loads(asked.stdout.splitlines()[-1])["peak"])


def _answer(question: dict) -> None:
    given = question["setting"]
    loads = tuple(Load(**load) for load in given.pop("loads"))
    setting = Setting(loads=loads, **given)
    longest = max(loads, key=lambda load: load.length * load.concurrency)
    model = Model(question["name"], Path(question["path"]))
    runtime = find_runtime(question["runtime"])
    with tempfile.TemporaryDirectory() as folder, Usage() as usage:
        runtime.open(model, setting, Path(folder)).run(longest, 1)
    print(json.dumps({"peak": round(usage.peak_mb * 2**20)}))


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]))
