"""Runs a GGUF by llama.cpp, through the library that llama-cpp-python brings."""

from __future__ import annotations

import ctypes
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funcnet_plugin.bench.load import Load, Timing, prompts
from funcnet_plugin.bench.models import Model
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.export import export_model
from funcnet_plugin.export.gguf import VARIANTS as VARIANTS

if TYPE_CHECKING:
    from funcnet_plugin.bench.backends import Setting

READS = ("gguf", "checkpoint")
_TRIED = "0.3.36"
_CALLED = (
    "llama_model_load_from_file", "llama_init_from_model", "llama_get_memory",
    "llama_memory_clear", "llama_batch_init", "llama_decode", "llama_get_logits_ith",
    "llama_model_size", "llama_model_free", "llama_free",
)  # fmt: skip
_AT_ONCE = 2048  # tokens of a prompt in one batch, as llama.cpp has it by default


def check(setting: Setting, variant: str | None) -> str:
    """Look for the library and what is called of it; see `backends`."""
    if find_spec("llama_cpp") is None:
        raise FuncnetError(
            "the backend llama.cpp needs the package llama-cpp-python, which is not installed; "
            f"{_TRIED} was tried."
        )
    import llama_cpp

    found = version("llama_cpp_python")
    missing = [name for name in _CALLED if not hasattr(llama_cpp, name)]
    if missing:
        raise FuncnetError(
            f"llama-cpp-python {found} has no {missing[0]}; take the version {_TRIED}."
        )
    return found


def open_model(model: Model, setting: Setting, variant: str | None, folder: Path) -> Decoding:
    """Load a GGUF, or make one of a checkpoint; see `backends`."""
    path = model.path
    if model.kind == "checkpoint":
        path = folder / "gguf"
        export_model(model.path, path, f"gguf:{variant}" if variant else "gguf")
    elif variant:
        raise FuncnetError(
            f"{model.name} is a GGUF as it is; take the backend llama.cpp without {variant}."
        )
    return Decoding(path, setting.threads)


class Decoding:
    """Times a GGUF, as `backends.Backend`.

    Args:
        path: directory with model.gguf.
        threads: of the CPU.

    Attributes:
        last: the last token that each text of the last repetition got.
    """

    at_once = 1

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self._lib, self._threads = llama_cpp, threads
        _be_quiet()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 999  # all, where it was built for a GPU
        file = path / "model.gguf"
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise FuncnetError(f"llama.cpp cannot load {file}.")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._context: Any = None
        self._made_for: Load | None = None
        self.weight_bytes = int(llama_cpp.llama_model_size(self._model))
        self.source = path
        self.last: list[int] = []

    def run(self, load: Load, repetitions: int) -> list[Timing]:
        """Decode greedily, see `backends.Backend`."""
        self._prepare(load)
        return [self._once(load) for _ in range(repetitions)]

    def _prepare(self, load: Load) -> None:
        """Make a cache of the size that the load needs."""
        if self._made_for == load:
            return
        self._free_context()
        params = self._lib.llama_context_default_params()
        params.n_ctx = load.concurrency * (load.length + 256)  # it rounds the share of a text
        params.n_seq_max = load.concurrency
        params.n_batch = max(_AT_ONCE, load.concurrency)
        params.n_threads = params.n_threads_batch = self._threads
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise FuncnetError(f"llama.cpp has no room for a cache for {load}.")
        self._made_for = load

    def _once(self, load: Load) -> Timing:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        texts = range(load.concurrency)
        prompt = [
            (token, place, text, place == load.prompt - 1)
            for text, tokens in enumerate(prompts(self._vocabulary, load))
            for place, token in enumerate(tokens)
        ]
        pieces = [prompt[i : i + _AT_ONCE] for i in range(0, len(prompt), _AT_ONCE)]
        reading = [_batch(self._lib, piece) for piece in pieces]
        writing = _batch(self._lib, [(0, 0, text, True) for text in texts])
        try:
            start, written = time.perf_counter(), []
            for piece, batch in zip(pieces, reading, strict=True):
                self._decode(batch)
                written += [self._best(i) for i, entry in enumerate(piece) if entry[3]]
            first = time.perf_counter()
            for place in range(load.prompt, load.length - 1):
                for text in texts:
                    writing.token[text], writing.pos[text] = written[text], place
                self._decode(writing)
                written = [self._best(text) for text in texts]
            end, self.last = time.perf_counter(), written
            return Timing(first - start, end - first)
        finally:
            for batch in (*reading, writing):
                self._lib.llama_batch_free(batch)

    def _decode(self, batch: Any) -> None:
        if self._lib.llama_decode(self._context, batch):
            raise FuncnetError(f"llama.cpp could not decode {batch.n_tokens} tokens.")

    def _best(self, i: int) -> int:
        logits = self._lib.llama_get_logits_ith(self._context, i)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())

    def _free_context(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
        self._context = self._made_for = None

    def close(self) -> None:
        """Give back its memory."""
        self._free_context()
        self._lib.llama_model_free(self._model)


def _batch(lib: Any, entries: list[tuple[int, int, int, bool]]) -> Any:
    """Fill a batch.

    Args:
        entries: token, its place, the number of its text, and whether logits are wanted behind it.
    """
    batch = lib.llama_batch_init(len(entries), 0, 1)
    batch.n_tokens = len(entries)
    for i, (token, place, text, wanted) in enumerate(entries):
        batch.token[i], batch.pos[i] = token, place
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
        batch.logits[i] = wanted
    return batch


_silent: list[Any] = []  # the library keeps a pointer to what it calls


def _be_quiet() -> None:
    """Keep llama.cpp from writing pages about every model that it loads."""
    import llama_cpp

    if not _silent:
        _silent.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
        llama_cpp.llama_log_set(_silent[0], ctypes.c_void_p(0))
