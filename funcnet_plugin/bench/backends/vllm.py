"""Runs a checkpoint by vLLM's own `vllm bench latency`, in processes of its own.

vLLM lives in an environment of its own, so only its command is called. It says how long a batch
took as a whole: the first token is timed by runs that write one token, and what a longer run took
more is the rest. It reads random tokens and ignores the end of a text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.bars import ticking
from funcnet_plugin.bench.load import Load, Timing
from funcnet_plugin.bench.models import Model
from funcnet_plugin.errors import FuncnetError

if TYPE_CHECKING:
    from funcnet_plugin.bench.backends import Setting

READS = ("checkpoint",)
VARIANTS = ("eager",)
_OLDEST = (0, 10)  # whose `bench latency` writes what is read here
_WARM_UP = 2


def check(setting: Setting, variant: str | None) -> str:
    """Look for the command, and ask for its version; see `backends`."""
    command = _command(setting)
    with ticking("asking vLLM for its version"):
        asked = subprocess.run([command, "--version"], capture_output=True, text=True)
    found = re.search(r"^(\d+)\.(\d+)\S*$", asked.stdout.strip(), re.MULTILINE)
    if asked.returncode or not found:
        raise FuncnetError(f"{command} does not start ({_why(asked)}); give a vLLM that does.")
    if tuple(map(int, found.groups())) < _OLDEST:
        raise FuncnetError(
            f"{command} is vLLM {found[0]}, and its bench is known from "
            f"{'.'.join(map(str, _OLDEST))} on; give a later one."
        )
    return found[0]


def open_model(model: Model, setting: Setting, variant: str | None, folder: Path) -> Latency:
    """Make ready to call vLLM, which loads the model each time; see `backends`."""
    arguments = [
        _command(setting), "bench", "latency", "--model", str(model.path),
        "--dtype", setting.dtype, "--max-model-len", str(setting.longest + 1),
        "--disable-detokenize", *(["--enforce-eager"] if variant == "eager" else []),
    ]  # fmt: skip
    return Latency(arguments, model, setting.threads)


class Latency:
    """Calls `vllm bench latency`, as `backends.Backend`.

    Args:
        arguments: the command and what all calls share.
        model: that is run.
        threads: of the CPU.
    """

    at_once = 10
    weight_bytes = None

    def __init__(self, arguments: list[str], model: Model, threads: int) -> None:
        self._arguments, self._model, self._threads = arguments, model, threads
        self.source = model.path

    def run(self, load: Load, repetitions: int) -> list[Timing]:
        """Call it twice, for the first token and for all; see `backends.Backend`."""
        firsts = self._latencies(load, 1, repetitions)
        wholes = self._latencies(load, load.written, repetitions)
        return [Timing(one, all_ - one) for one, all_ in zip(firsts, wholes, strict=True)]

    def _latencies(self, load: Load, written: int, repetitions: int) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "latency.json"
            done = subprocess.run(
                [
                    *self._arguments, "--input-len", str(load.prompt), "--output-len",
                    str(written), "--batch-size", str(load.concurrency), "--num-iters",
                    str(repetitions), "--num-iters-warmup", str(_WARM_UP), "--output-json",
                    str(found),
                ],
                capture_output=True, text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(self._threads)},
            )  # fmt: skip
            if done.returncode or not found.exists():
                raise FuncnetError(f"vLLM does not run {self._model.name}: {_why(done)}.")
            return json.loads(found.read_text())["latencies"]

    def close(self) -> None:
        """Do nothing: no process is left."""


def _command(setting: Setting) -> str:
    command = setting.vllm or "vllm"
    found = shutil.which(command)
    if found is None:
        raise FuncnetError(
            f"the backend vllm needs the command {command}, which is not there; install vLLM in "
            "an environment of its own and give its command by --vllm."
        )
    return found


def _why(done: subprocess.CompletedProcess) -> str:
    """Find what went wrong: the first error that does not send the reader to another one."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
    errors = (re.search(r"\b\w*(Error|Exception): .*", line) for line in lines)
    named = [found[0] for found in errors if found and "root cause" not in found[0]]
    said = named or [line for line in lines if line][-1:] or ["it said nothing"]
    return said[0][:300].rstrip(".")
