"""Lets the model write text to calibrate on, beside the calibration data.

It writes two kinds of text. Own windows begin with a single token and show what the model can do
besides; they are a share of the calibration. Continuations go on from a piece of a calibration
sample and are more text of its kind, for a repair that would learn little text by heart.

All is written before the run, on the dense model, in passes through the whole of it. So this is for
runs that cut nothing before every layer is measured. Of own windows only activations are measured:
the loss's gradients on calibration data serve as well (docs/experiments/small-models.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from funcnet_plugin.measure.passes import on_gpu
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.store import Store
from funcnet_plugin.measure.text import Text
from funcnet_plugin.text.at_once import bytes_per_window
from funcnet_plugin.text.cache import TextCache, facts_of
from funcnet_plugin.text.writing import write

# Windows written for every calibration sample, whatever their weight: with fewer, how much there is
# of the rarer kinds of text is chance.
PER_SAMPLE = 3
# Tokens of an own window at most: many short ones calibrate as well as many long ones, and better
# than few long ones (docs/experiments/real-models.md).
OWN_LENGTH = 64
# Tokens of a continuation at most: of these the repair learns, so their number counts.
CONTINUED_LENGTH = 128
_AT_LEAST = 16  # windows that a GPU must have room for, or the model writes on the CPU
_PREFIX = 16  # tokens of a sample that a continuation goes on from
# samples, tokens that may be written, random numbers -> what each window begins with
_Begin = Callable[[Text, set[int], random.Random], list[list[int]]]
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class OwnText:
    """Holds what a model wrote for a run.

    Attributes:
        windows: (n_windows, window), int64, `PER_SAMPLE` for every calibration sample.
        share: what they count of all text that the run reads, in (0, 1).
    """

    windows: Tensor
    share: float

    @property
    def text(self) -> Text:
        """Put the windows into batches."""
        return Text.of_windows(self.windows, self.share, PER_SAMPLE)


def write_own_text(
    model: nn.Module,
    text: Text,
    share: float,
    seed: int,
    processes: Processes | None = None,
    store: Store | None = None,
    cache: TextCache | None = None,
) -> OwnText:
    """Let the model write for a run; what an interrupted one wrote is taken over.

    Windows are as long as the calibration samples are on average, at most `OWN_LENGTH` tokens, and
    each begins with a token from anywhere in one of them; with several processes each writes some
    for its own samples.

    Args:
        model: dense, in memory.
        text: the calibration data.
        share: see `OwnText`.
        seed: of the first tokens and of what is written.
        store: of the run.
        cache: of all runs.

    Raises:
        CalibrationError: samples of one token.
    """
    window = min(text.window, OWN_LENGTH)
    windows = _written(
        "own-text", _first_tokens, model, text, window, seed, processes, store, cache
    )
    return OwnText(windows, share)


def write_continuations(
    model: nn.Module,
    text: Text,
    per_sample: int,
    seed: int,
    processes: Processes | None = None,
    store: Store | None = None,
    cache: TextCache | None = None,
) -> Text:
    """Let the model go on from up to 16 tokens from anywhere in each sample.

    Windows are as long as the samples are on average, at most `CONTINUED_LENGTH` tokens.

    Args:
        per_sample: how many windows for every sample; those of one sample stand together.
        model, text, seed, processes, store, cache: see `write_own_text`.
    """
    window = min(text.window, CONTINUED_LENGTH)
    pieces = partial(_pieces, length=max(1, min(_PREFIX, window // 2)), count=per_sample)
    windows = _written("continuations", pieces, model, text, window, seed, processes, store, cache)
    return Text.of_windows(windows, per_sample=per_sample)


def _written(
    name: str,
    begin: _Begin,
    model: nn.Module,
    text: Text,
    window: int,
    seed: int,
    processes: Processes | None,
    store: Store | None,
    cache: TextCache | None,
) -> Tensor:
    """Write windows; `begin` says with what each begins, store and cache know them by name."""
    found = None if store is None else store.load(name)
    if found is not None:
        return found[0]["windows"]
    seed += 0 if processes is None else processes.rank
    ordinary = _ordinary_tokens(model)
    first = begin(text, ordinary, random.Random(seed))
    facts = facts_of(name, first, ordinary, window, seed)
    written = None if cache is None else cache.load(facts)
    if written is None:
        with on_gpu(model, besides=_AT_LEAST * bytes_per_window(model, window)):
            written = torch.tensor(write(model, ordinary, begin=first, window=window, seed=seed))
        if cache is not None:
            cache.save(facts, written)
    if store is not None:
        store.save(name, {"windows": written}, {})
    return written


def _first_tokens(text: Text, ordinary: set[int], rng: random.Random) -> list[list[int]]:
    """Draw `PER_SAMPLE` of each sample's tokens, or any where it has none that may be written."""
    return [
        [token]
        for sample in text.samples
        for token in rng.choices(
            [t for t in sample if t in ordinary] or sorted(ordinary), k=PER_SAMPLE
        )
    ]


def _pieces(
    text: Text, ordinary: set[int], rng: random.Random, length: int, count: int
) -> list[list[int]]:
    """Draw `count` pieces of each sample, of `length` tokens; of an empty sample any token."""
    found = []
    for sample in text.samples:
        tokens = sample or [rng.choice(sorted(ordinary))]
        for _ in range(count):
            start = rng.randint(0, max(0, len(tokens) - length))
            found.append(tokens[start : start + length])
    return found


def _ordinary_tokens(model: nn.Module) -> set[int]:
    """List all tokens but those that the configs call special: a modifier sees no tokenizer."""
    special: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in _SPECIAL:
            ids = getattr(config, name, None)
            special.update(ids if isinstance(ids, list | tuple) else [ids])
    return set(range(model.get_input_embeddings().num_embeddings)) - special
