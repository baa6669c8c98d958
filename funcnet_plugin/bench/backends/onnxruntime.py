"""Reads a prompt by onnxruntime.

What `funcnet export --format onnx` writes has no cache of keys and values: every further token
would read the whole text again, which nobody serves. So only the first token is timed.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from funcnet_plugin.bench.load import Load, Timing, prompts
from funcnet_plugin.bench.models import Model
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.export import export_model

if TYPE_CHECKING:
    from funcnet_plugin.bench.backends import Setting

READS = ("onnx", "checkpoint")
VARIANTS = ()


def check(setting: Setting, variant: str | None) -> str:
    """Look for the library; see `backends`."""
    if find_spec("onnxruntime") is None:
        raise FuncnetError(
            "the backend onnxruntime is not installed; install funcnet-plugin[onnx]."
        )
    return version("onnxruntime")


def open_model(model: Model, setting: Setting, variant: str | None, folder: Path) -> Reading:
    """Load a model.onnx, or make one of a checkpoint; see `backends`."""
    path = model.path
    if model.kind == "checkpoint":
        path = folder / "onnx"
        export_model(model.path, path, "onnx")
    return Reading(path, model.shape.vocabulary, setting.threads)


class Reading:
    """Times a model.onnx, as `backends.Backend`.

    Args:
        path: directory with model.onnx.
        vocabulary: number of tokens.
        threads: of the CPU.
    """

    at_once = 1
    weight_bytes = None

    def __init__(self, path: Path, vocabulary: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            path / "model.onnx", options, providers=onnxruntime.get_available_providers()
        )
        self._vocabulary = vocabulary
        self.source = path

    def run(self, load: Load, repetitions: int) -> list[Timing]:
        """Read the prompt and choose the next token, see `backends.Backend`."""
        ids = np.array(prompts(self._vocabulary, load))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        timings = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self._session.run(["logits"], inputs)[0][:, -1].argmax(-1)
            timings.append(Timing(time.perf_counter() - start, None))
        return timings

    def close(self) -> None:
        """Give back its memory."""
        del self._session
