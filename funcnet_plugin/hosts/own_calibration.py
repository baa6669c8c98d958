"""Calibration on what the model writes by itself, beside the calibration data.

It writes two kinds of text. Own windows begin with a single token and show what the model can do
besides; they are a share of the calibration. Continuations go on from a piece of a calibration
sample and are more text of its kind, for a repair that would learn little text by heart.

All is written before the run, on the dense model, in passes through the whole of it. So this is for
runs that cut nothing before every layer is measured. Of own windows only activations are measured:
the loss's gradients on calibration data serve as well (docs/experiments.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.calibration import make_loader
from funcnet_plugin.hosts.resume import Record
from funcnet_plugin.own_text import cache_bytes, write
from funcnet_plugin.pruning.compensation import Moments
from funcnet_plugin.pruning.finite import check_finite
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.whole_model import model_inputs, on_gpu

Batches = Iterable[dict[str, Any]]
# Windows written for every calibration sample, whatever their weight: with fewer, how much there is
# of the rarer kinds of text is chance.
PER_SAMPLE = 3
_PREFIX = 16  # tokens of a sample that a continuation goes on from
_AT_ONCE = 8  # windows per pass
# samples, tokens that may be written, random numbers -> what each window begins with
_Begin = Callable[[list[list[int]], set[int], random.Random], list[list[int]]]
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def own_windows(
    model: nn.Module,
    calibration: Batches,
    seed: int,
    processes: Processes | None = None,
    record: Record | None = None,
) -> Tensor:
    """What the model writes for a run; what an interrupted one wrote is taken over.

    Windows are as long as the calibration samples are on average, and each begins with a token from
    anywhere in one of them; with several processes each writes some for its own samples.

    Args:
        model: dense, in memory.
        calibration: batches as the run reads them; read once here.
        seed: of the first tokens and of what is written.
        record: of the run.

    Returns:
        (n_windows, window), int64.

    Raises:
        CalibrationError: samples of one token.
    """
    return _written("own-text", _first_tokens, model, calibration, seed, processes, record)


def continuation_windows(
    model: nn.Module,
    calibration: Batches,
    per_sample: int,
    seed: int,
    processes: Processes | None = None,
    record: Record | None = None,
) -> Tensor:
    """As `own_windows`, but each goes on from up to 16 tokens from anywhere in its sample.

    Args:
        per_sample: how many for every sample; those of one sample stand together.
    """
    pieces = partial(_pieces, count=per_sample)
    return _written("continuations", pieces, model, calibration, seed, processes, record)


def _written(
    name: str,
    begin: _Begin,
    model: nn.Module,
    calibration: Batches,
    seed: int,
    processes: Processes | None,
    record: Record | None,
) -> Tensor:
    """See `own_windows`; `begin` says with what each window begins, `record` knows it by name."""
    found = None if record is None else record.written(name)
    if found is not None:
        return found
    samples = _samples(model, calibration)
    seed += 0 if processes is None else processes.rank
    ordinary = _ordinary_tokens(model)
    with on_gpu(model, besides=cache_bytes(model)):
        windows = write(
            model,
            ordinary,
            begin=begin(samples, ordinary, random.Random(seed)),
            window=_window(samples),
            seed=seed,
        )
    found = torch.tensor(windows)
    if record is not None:
        record.save_written(name, found)
    return found


def own_batches(windows: Tensor) -> Batches:
    """(n_windows, window) as calibration batches."""
    return make_loader(windows.tolist(), _AT_ONCE)


def own_moments(
    model: nn.Module,
    calibration: Batches,
    windows: Tensor,
    blocks: Sequence[MLPBlock],
    share: float,
) -> dict[int, Moments]:
    """Layer -> moments of its inner activations on text that the model wrote.

    Args:
        model: dense, in memory.
        calibration: batches as the run reads them; counted here.
        windows: see `own_windows`.
        blocks: which MLPs are measured.
        share: of own text once the calibration tokens are added, in (0, 1): the moments count for
            so many tokens.
    """
    tokens = sum(map(len, _samples(model, calibration)))
    found = inner_moments(model, own_batches(windows), blocks)
    weight = tokens * share / (1.0 - share)
    return {index: moments.counted_as(round(weight)) for index, moments in found.items()}


def _samples(model: nn.Module, calibration: Batches) -> list[list[int]]:
    """The tokens of each sample, without padding."""
    with torch.random.fork_rng(devices=[]):
        return [
            row[kept.bool()].tolist()
            for ids, mask, _ in model_inputs(model, calibration)
            for row, kept in zip(ids, mask, strict=True)
        ]


def _window(samples: list[list[int]]) -> int:
    """How long the samples are on average."""
    return round(sum(map(len, samples)) / max(len(samples), 1))


def _first_tokens(
    samples: list[list[int]], ordinary: set[int], rng: random.Random
) -> list[list[int]]:
    """`PER_SAMPLE` of each sample's tokens, or any where a sample has none that may be written."""
    return [
        [token]
        for sample in samples
        for token in rng.choices(
            [t for t in sample if t in ordinary] or sorted(ordinary), k=PER_SAMPLE
        )
    ]


def _pieces(
    samples: list[list[int]], ordinary: set[int], rng: random.Random, count: int
) -> list[list[int]]:
    """`count` of each sample, at most half of a window long; of an empty sample any token."""
    length = max(1, min(_PREFIX, _window(samples) // 2))
    found = []
    for sample in samples:
        tokens = sample or [rng.choice(sorted(ordinary))]
        for _ in range(count):
            start = rng.randint(0, max(0, len(tokens) - length))
            found.append(tokens[start : start + length])
    return found


def _ordinary_tokens(model: nn.Module) -> set[int]:
    """All tokens but those that the configs call special: a modifier sees no tokenizer."""
    special: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in _SPECIAL:
            ids = getattr(config, name, None)
            special.update(ids if isinstance(ids, list | tuple) else [ids])
    return set(range(model.get_input_embeddings().num_embeddings)) - special


@torch.no_grad()
def inner_moments(
    model: nn.Module, batches: Batches, blocks: Sequence[MLPBlock]
) -> dict[int, Moments]:
    """Layer -> moments of its inner activations over all tokens, on the CPU.

    Args:
        model: dense, in memory.
        batches: without padding.
        blocks: which MLPs are measured.
    """
    with on_gpu(model, besides=sum(8 * block.width**2 for block in blocks)):
        found = {b.index: Moments(b.width) for b in blocks}

        def watch(block: MLPBlock) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple) -> None:
                h = args[0].flatten(0, -2)
                check_finite(
                    h, f"layer {block.index}: inputs of the down projection of {block.name}"
                )
                found[block.index].add(h)

            return hook

        hooks = [b.down.register_forward_pre_hook(watch(b)) for b in blocks]
        try:
            for ids, mask, _ in model_inputs(model, batches, "moments of its own text"):
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)  # no logits
        finally:
            for hook in hooks:
                hook.remove()
        return {index: moments.to("cpu") for index, moments in found.items()}
