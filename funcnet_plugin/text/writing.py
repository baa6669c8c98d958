"""Lets a model write text by itself, to calibrate on.

A model's own text follows the distribution it was trained on, of which no single corpus is a fair
sample (Williams et al. 2024, arXiv 2410.17170). Windows of other calibration text are cut out of
the middle of documents, and so do these begin: with one token and nothing before it, of calibration
text where there is any, else a random one of the vocabulary (as in LLM-QAT, arXiv 2305.17888).
After a beginning-of-sequence token a model writes what documents begin with, and long ones, which
begin rarely, are hardly ever written. After several tokens of calibration text it goes on in its
kind: another thing, for where there is little of that (docs/experiments/small-models.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger
from torch import Tensor

from funcnet_plugin.bars import counter
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.at_once import is_out_of_memory, windows_at_once
from funcnet_plugin.text.sampling import Drawing, uniforms

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedModel


def write(
    network: PreTrainedModel,
    ordinary: Collection[int],
    *,
    begin: Sequence[Sequence[int]],
    window: int,
    seed: int,
) -> list[list[int]]:
    """Let a model write.

    What a window says depends on what it begins with, on its place in `begin` and on the seed; not
    on how many are written at once, but for rounding.

    Args:
        network: in memory.
        ordinary: the tokens that may be written.
        begin: the tokens that each window begins with, fewer than `window`.
        window: tokens per window, these included.
        seed: of the sampling, from the whole vocabulary.

    Returns:
        a window for each of `begin`, in that order.

    Raises:
        CalibrationError: windows too short to write anything, or no memory for one of them.
        NumbersError: a prediction is not finite.
    """
    if window < 2:
        raise CalibrationError(
            f"a window of {window} tokens is too short for the model to write in; give longer "
            "samples, or do without its own text (own_text: 0, continuations: 0)."
        )
    to_write = sum(window - len(tokens) for tokens in begin)
    at_once = min(windows_at_once(network, window), len(begin))
    logger.info(
        f"the model writes {len(begin)} windows of {window} tokens to calibrate on, {to_write:,} "
        f"tokens in all, {at_once} windows at once"
    )
    size = network.get_input_embeddings().num_embeddings
    left_out = torch.tensor(sorted(set(range(size)) - set(ordinary)), dtype=torch.long)
    written: dict[int, list[int]] = {}
    waiting = sorted(range(len(begin)), key=lambda i: len(begin[i]))  # `generate` takes equal ones
    with _as_it_predicts(network), counter(to_write, "the model writes", "token") as progress:
        while waiting:
            given = len(begin[waiting[0]])
            batch = [i for i in waiting[:at_once] if len(begin[i]) == given]
            rows = _go_on(
                network,
                torch.tensor([begin[i] for i in batch], device=network.device),
                window,
                Drawing(network, left_out, uniforms(seed, batch, window)),
                progress,
            )
            if rows is None:
                at_once = _fewer(len(batch), window)
                continue
            written |= zip(batch, rows.tolist(), strict=True)
            waiting = waiting[len(batch) :]
    return [written[i] for i in range(len(begin))]


def _go_on(
    network: PreTrainedModel, ids: Tensor, window: int, drawing: Drawing, progress: tqdm
) -> Tensor | None:
    """Write one batch: (n_windows, window), int64; None where memory does not suffice."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    before, to_write = progress.n, window - ids.shape[1]
    try:
        # No static cache: it attends to places that are still empty, and with a mask. Shared keys
        # and values are copied for every head then (docs/experiments/real-models.md).
        return network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([_counting(progress)]),
            min_new_tokens=to_write,
            max_new_tokens=to_write,
            pad_token_id=0,  # never needed: all are equally long
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    progress.update(before - progress.n)  # outside, where the error does not hold tensors any more
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _fewer(at_once: int, window: int) -> int:
    if at_once == 1:
        raise CalibrationError(
            f"there is no memory for the model to write one window of {window} tokens in; free "
            "some, or do without its own text (own_text: 0, continuations: 0)."
        )
    logger.warning(
        f"no memory for {at_once} windows at once: the model goes on with {at_once // 2}, and what "
        "is written stays"
    )
    return at_once // 2


def _counting(progress: tqdm) -> Any:
    """Make what is asked after every token of a batch whether to stop: it counts them, no more."""

    def count(ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        progress.update(len(ids))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return count


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
