"""Runs a model in one of several runtimes, each a module of this package.

A module has `READS`, the kinds of models that the runtime takes; `VARIANTS`, what may stand behind
a colon; `check(setting, variant)`, which refuses a runtime that is missing or of a version that it
does not know and gives the version; and `open_model(model, setting, variant, folder)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

from funcnet_plugin.bench.load import Load, Timing
from funcnet_plugin.bench.models import Model
from funcnet_plugin.errors import FuncnetError

# name -> module of this package, imported when it is asked for
BACKENDS = {
    "transformers": "hugging_face", "llama.cpp": "llama_cpp", "vllm": "vllm",
    "onnxruntime": "onnxruntime",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Says what all models of a bench share.

    Attributes:
        threads: of the CPU.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        loads: what will be asked of the model.
        vllm: the command, if it is not on the PATH.
    """

    threads: int
    dtype: str
    loads: tuple[Load, ...]
    vllm: str | None = None

    @property
    def longest(self) -> int:
        return max(load.length for load in self.loads)


class Backend(Protocol):
    """Runs one model.

    Attributes:
        at_once: repetitions that are cheapest made together, since starting takes long.
        weight_bytes: of the weights in memory; None where the runtime does not say.
        source: directory that it reads: the model's own, or what the model was turned into.
    """

    at_once: int
    weight_bytes: int | None
    source: Path

    def run(self, load: Load, repetitions: int) -> list[Timing]:
        """Read and write as the load says, nothing but the tokens kept of it, so many times.

        Raises:
            FuncnetError: the runtime cannot.
        """

    def close(self) -> None:
        """Give back its memory."""


@dataclass(frozen=True)
class Runtime:
    """Names a runtime, and how it is to run models."""

    name: str
    module: ModuleType
    variant: str | None

    def check(self, setting: Setting) -> str:
        """Give its version.

        Raises:
            FuncnetError: it is missing, or of a version that is not known.
        """
        return self.module.check(setting, self.variant)

    def open(self, model: Model, setting: Setting, folder: Path) -> Backend:
        """Load a model.

        Args:
            folder: an empty directory for what it must be turned into.

        Raises:
            FuncnetError: the runtime does not take it.
        """
        if model.kind not in self.module.READS:
            takes = " or ".join(self.module.READS)
            raise FuncnetError(f"{model.name} is a {model.kind}, and {self.name} reads a {takes}.")
        return self.module.open_model(model, setting, self.variant, folder)


def find_runtime(name: str) -> Runtime:
    """Find a runtime by `NAME` or `NAME:VARIANT`.

    Raises:
        FuncnetError: there is none.
    """
    base, _, variant = name.partition(":")
    if base not in BACKENDS:
        raise FuncnetError(f"there is no backend {base!r}; choose one of {', '.join(BACKENDS)}.")
    module = import_module(f"{__name__}.{BACKENDS[base]}")
    if variant and variant not in module.VARIANTS:
        known = f"one of {', '.join(module.VARIANTS)}" if module.VARIANTS else "nothing"
        raise FuncnetError(f"the backend {base} takes {known} after a colon, not {variant}.")
    return Runtime(name, module, variant or None)
