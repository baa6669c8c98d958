"""Lets a model write text by itself, to calibrate on.

A model's own text follows the distribution it was trained on, of which no single corpus is a fair
sample (Williams et al. 2024, arXiv 2410.17170). Windows of other calibration text are cut out of
the middle of documents, and so do these begin: with one token and nothing before it, of calibration
text where there is any, else a random one of the vocabulary (as in LLM-QAT, arXiv 2305.17888).
After a beginning-of-sequence token a model writes what documents begin with, and long ones, which
begin rarely, are hardly ever written. After several tokens of calibration text it goes on in its
kind: another thing, for where there is little of that (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from loguru import logger

from funcnet_plugin.bars import counter
from funcnet_plugin.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm
    from transformers import PreTrainedModel

_AT_ONCE = 64  # windows per pass ...
_TOKENS = 8192  # ... or fewer, of so many tokens: keys and values of all of them are kept
# At 1 the tail of every distribution gets in, mistake upon mistake, which no other text is like.
_TEMPERATURE = 0.8


def write(
    network: PreTrainedModel,
    ordinary: Collection[int],
    *,
    begin: Sequence[Sequence[int]],
    window: int,
    seed: int,
) -> list[list[int]]:
    """Let a model write.

    Args:
        network: in memory.
        ordinary: the tokens that may be written.
        begin: the tokens that each window begins with, fewer than `window`.
        window: tokens per window, these included.
        seed: of the sampling, from the whole vocabulary.

    Returns:
        a window for each of `begin`, in that order.

    Raises:
        CalibrationError: windows too short to write anything.
        NumbersError: a prediction is not finite.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    if window < 2:
        raise CalibrationError(
            f"a window of {window} tokens is too short for the model to write in; give longer "
            "samples, or do without its own text (own_text: 0, continuations: 0)."
        )
    to_write = sum(window - len(tokens) for tokens in begin)
    logger.info(
        f"the model writes {len(begin)} windows of {window} tokens to calibrate on, {to_write:,} "
        "tokens in all"
    )
    size = network.get_input_embeddings().num_embeddings
    others = sorted(set(range(size)) - set(ordinary))
    windows: list[list[int]] = []
    at_once = windows_at_once(window)
    with (
        torch.random.fork_rng(),
        _as_it_predicts(network),
        counter(to_write, "the model writes", "token") as written_so_far,
    ):
        count = StoppingCriteriaList([_counting(written_so_far)])
        torch.manual_seed(seed)
        for given, alike in groupby(begin, key=len):
            for ids in torch.tensor(list(alike), device=network.device).split(at_once):
                written = network.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=_TEMPERATURE,
                    top_k=0,
                    top_p=1.0,
                    logits_processor=LogitsProcessorList([_finite_logits(network)]),
                    stopping_criteria=count,
                    suppress_tokens=others or None,
                    min_new_tokens=window - given,
                    max_new_tokens=window - given,
                    pad_token_id=others[0] if others else 0,  # never needed: all are equally long
                )
                windows += written.tolist()
    return windows


def windows_at_once(window: int) -> int:
    """Count the windows of one pass."""
    return max(1, min(_AT_ONCE, _TOKENS // window))


def _finite_logits(network: PreTrainedModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Make what passes predictions on if something can be drawn from them."""
    import torch

    from funcnet_plugin.measure.finite import not_finite

    def check(ids: Tensor, scores: Tensor) -> Tensor:
        # tokens that are not written have minus infinity
        if not bool(torch.isfinite(scores.amax(-1)).all()):
            raise not_finite(network, ids, torch.ones_like(ids), "text of the model's own")
        return scores

    return check


def _counting(bar: tqdm) -> Callable[..., Tensor]:
    """Make what is asked after every token of a batch whether to stop: it counts them, no more."""
    import torch

    def count(ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        bar.update(len(ids))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return count


def cache_bytes(network: PreTrainedModel) -> int:
    """Count the bytes that `write` needs besides weights, as if no heads shared keys and values."""
    layers = network.config.get_text_config().num_hidden_layers
    hidden = network.get_input_embeddings().embedding_dim
    return 2 * layers * hidden * _TOKENS * network.dtype.itemsize


@contextmanager
def _as_it_predicts(network: PreTrainedModel) -> Iterator[None]:
    """Put the habits of its generation_config aside.

    A repetition penalty, beams or forced tokens would make the text another than the model's own.
    """
    from transformers import GenerationConfig

    habits = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = habits
