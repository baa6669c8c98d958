"""Cuts documents into token windows, and puts these into the DataLoader that oneshot takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loguru import logger

from funcnet_plugin.errors import CalibrationError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def mixed_windows(
    sources: Sequence[tuple[list[str], float]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[list[int]]:
    """Cut `token_windows` of every source, as many as its share, in one random order.

    So every group of samples holds all sources.

    Args:
        sources: documents, with their shares of the samples.
        window, samples, seed: see `token_windows`.

    Raises:
        CalibrationError: a source does not fill one window, or gets no sample.
    """

    def draw(texts: list[str], count: int) -> list[list[int]]:
        return token_windows(texts, tokenizer, window=window, samples=count, seed=seed)

    if len(sources) == 1:
        return draw(sources[0][0], samples)
    windows = []
    for texts, share in sources:
        count = round(samples * share)
        if count == 0:
            raise CalibrationError(
                f"a share of {share:.3g} of {samples} samples is none; give more samples."
            )
        windows += draw(texts, count)
    random.Random(seed).shuffle(windows)
    return windows


def token_windows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[list[int]]:
    """Cut documents into windows of equal length and draw some of them.

    Documents are tokenised as the tokenizer does it for the model (special tokens included) and
    joined; equal windows need neither padding nor truncation, so no token is lost and the result
    does not depend on the batch size.

    Args:
        window: tokens per sample.
        samples: how many windows to draw, without repetition; fewer come back if there are fewer.
        seed: decides which, and in which order: neighbouring windows get into different groups.

    Raises:
        CalibrationError: the text does not fill one window.
    """
    tokens: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=True, verbose=False)["input_ids"]:
        tokens.extend(ids)
    available = len(tokens) // window
    if available == 0:
        raise CalibrationError(
            f"the calibration text has {len(tokens)} tokens and one sample needs {window}; give "
            "more text or a shorter window."
        )
    chosen = random.Random(seed).sample(range(available), min(samples, available))
    return [tokens[i * window : (i + 1) * window] for i in chosen]


def make_loader(windows: Sequence[Sequence[int]], batch_size: int | None = None) -> DataLoader:
    """Put the windows, in order, into ``{"input_ids", "attention_mask"}`` batches, int64.

    Args:
        batch_size: windows of one batch; if not given, a run decides.
    """
    import torch
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    from funcnet_plugin.text.batches import SingleSamples

    rows = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        for ids in windows
    ]
    if batch_size is None:
        return SingleSamples(rows, collate_fn=default_data_collator)
    return DataLoader(rows, batch_size=batch_size, shuffle=False, collate_fn=default_data_collator)


def check_ids(
    windows: Sequence[Sequence[int]], model: PreTrainedModel, tokens: int | None = None
) -> None:
    """Refuse text of another tokenizer than the model's.

    Args:
        windows: tokens of each.
        tokens: that the tokenizer knows; more than the model has are warned of.

    Raises:
        CalibrationError: it gave a token that the model does not have.
    """
    highest, known = max(map(max, windows)), model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise CalibrationError(
            f"the tokenizer gives token {highest} and the model has {known} tokens; put the "
            "model's own tokenizer beside it."
        )
    if tokens is not None and tokens > known:
        logger.warning(
            f"the tokenizer has {tokens} tokens and the model {known}: text with one of the others "
            "would end in an error; put the model's own tokenizer beside it, or resize its "
            "embeddings."
        )
