"""Runs a checkpoint by transformers' `generate`, eager or with its decoding step compiled."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer, CompileConfig

from funcnet_plugin.bench.load import Load, Timing, prompts
from funcnet_plugin.bench.models import Model
from funcnet_plugin.checkpoints.loading import read_model_config
from funcnet_plugin.checkpoints.per_layer import enable
from funcnet_plugin.checkpoints.weights import check_weights
from funcnet_plugin.errors import FuncnetError

if TYPE_CHECKING:
    from funcnet_plugin.bench.backends import Setting

READS = ("checkpoint",)
VARIANTS = ("compiled",)


def check(setting: Setting, variant: str | None) -> str:
    """Refuse to compile where there is no compiler; see `backends`."""
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if variant == "compiled" and not any(map(shutil.which, compilers)):
        raise FuncnetError(
            "transformers:compiled needs a C++ compiler and none is on the PATH; install g++, or "
            "take the backend transformers."
        )
    return transformers.__version__


def open_model(model: Model, setting: Setting, variant: str | None, folder: Path) -> Generating:
    """Load a checkpoint, onto a GPU where there is one; see `backends`."""
    enable(PreTrainedModel)
    if not model.quantized:
        check_weights(model.path, read_model_config(model.path))
    torch.set_num_threads(setting.threads)
    loaded = AutoModelForCausalLM.from_pretrained(
        model.path, dtype=setting.dtype, trust_remote_code=False
    )
    if torch.cuda.is_available():
        try:
            loaded.cuda()
        except torch.OutOfMemoryError as error:
            raise FuncnetError(
                f"the device has no room for {model.path} beside the models that are loaded; bench "
                "fewer or smaller models."
            ) from error
    return Generating(loaded.eval(), variant == "compiled", model.path)


class Generating:
    """Times a model in memory, as `backends.Backend`.

    Args:
        model: on the device where it is to run; its generation config is replaced.
        compiled: whether `generate` compiles the decoding step, with a cache of fixed size. The
            prompt is read by the model as it is, as transformers does it.
        source: directory that it came from.
    """

    at_once = 1

    def __init__(self, model: PreTrainedModel, compiled: bool, source: Path) -> None:
        self._model, self._compiled, self.source = model, compiled, source
        # of its own it would end at the end of a text, and sample
        model.generation_config = GenerationConfig(pad_token_id=0)
        tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
        self.weight_bytes = sum(t.numel() * t.element_size() for t in tensors.values())

    @torch.no_grad()
    def run(self, load: Load, repetitions: int) -> list[Timing]:
        """Generate greedily, see `backends.Backend`."""
        vocabulary = self._model.config.vocab_size
        ids = torch.tensor(prompts(vocabulary, load), device=self._model.device)
        try:
            return [self._once(ids, load.written) for _ in range(repetitions)]
        except torch.OutOfMemoryError as error:
            raise FuncnetError(
                f"the device has no room for {load} tokens beside the models that are loaded; "
                "bench fewer models, shorter lengths or fewer texts at once."
            ) from error

    def _once(self, ids: Tensor, written: int) -> Timing:
        how = {}
        if self._compiled:
            compiling = CompileConfig()
            compiling._compile_all_devices = True  # without it a CPU is left out
            how = {"cache_implementation": "static", "compile_config": compiling}
        config = GenerationConfig(
            max_new_tokens=written, do_sample=False, use_cache=True, pad_token_id=0, **how
        )
        clock = _Clock()
        start = time.perf_counter()
        found = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=clock
        )
        if found.shape[1] != ids.shape[1] + written:
            raise FuncnetError(
                f"transformers wrote {found.shape[1] - ids.shape[1]} tokens instead of {written}."
            )
        _, first, *_, last = clock.times  # the prompt comes first
        return Timing(first - start, last - first)

    def close(self) -> None:
        """Give back its memory, compiled code included."""
        del self._model
        if self._compiled:
            torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Clock(BaseStreamer):
    """Notes when tokens are on the host, where a user would see them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass
