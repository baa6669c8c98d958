"""Cuts documents into token windows, and puts these into the DataLoader that oneshot takes."""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.documents import Document
from funcnet_plugin.text.ids import token_ids

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Window:
    """Holds the tokens of one sample, and says what they are of.

    Attributes:
        tokens: ids.
        starts: where its documents begin, the first at 0.
        documents: as many.
    """

    tokens: list[int]
    starts: list[int]
    documents: list[Document]

    def document_at(self, position: int) -> Document:
        """Give the document of the token at a position."""
        return self.documents[bisect_right(self.starts, position) - 1]


def mixed_windows(
    sources: Sequence[tuple[Sequence[Document], float]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[Window]:
    """Cut `document_windows` of every source, as many as its share, in one random order.

    So every group of samples holds all sources.

    Args:
        sources: documents, with their shares of the samples.
        window, samples, seed: see `document_windows`.

    Raises:
        CalibrationError: a source does not fill one window, or gets no sample.
    """

    def draw(documents: Sequence[Document], count: int) -> list[Window]:
        return document_windows(documents, tokenizer, window=window, samples=count, seed=seed)

    if len(sources) == 1:
        return draw(sources[0][0], samples)
    windows = []
    counts = _counts(samples, [share for _, share in sources])
    for (documents, share), count in zip(sources, counts, strict=True):
        if count == 0:
            raise CalibrationError(
                f"a share of {share:.3g} of {samples} samples is none; give more samples."
            )
        windows += draw(documents, count)
    random.Random(seed).shuffle(windows)
    return windows


def _counts(samples: int, shares: Sequence[float]) -> list[int]:
    """Divide samples by shares that sum to 1; what is left goes to the largest remainders."""
    exact = [samples * share for share in shares]
    counts = [math.floor(count) for count in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: samples - sum(counts)]:
        counts[i] += 1
    return counts


def document_windows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[Window]:
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
    tokens = array("q")  # a list would take ten times the memory
    held, firsts = [], []
    found = token_ids([document.text for document in documents], tokenizer)
    for document, ids in zip(documents, found, strict=True):
        if ids:  # documents without a token stand nowhere
            held.append(document)
            firsts.append(len(tokens))
            tokens.extend(ids)
    available = len(tokens) // window
    if available == 0:
        raise CalibrationError(
            f"the calibration text has {len(tokens)} tokens and one sample needs {window}; give "
            "more text or a shorter window."
        )

    def cut(number: int) -> Window:
        begin, end = number * window, (number + 1) * window
        inside = range(bisect_right(firsts, begin) - 1, bisect_right(firsts, end - 1))
        starts = [max(firsts[i] - begin, 0) for i in inside]
        return Window(tokens[begin:end].tolist(), starts, [held[i] for i in inside])

    return list(map(cut, random.Random(seed).sample(range(available), min(samples, available))))


def token_windows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[list[int]]:
    """Give the tokens of `document_windows` of texts that come from nowhere in particular."""
    documents = list(map(Document, texts))
    found = document_windows(documents, tokenizer, window=window, samples=samples, seed=seed)
    return [one.tokens for one in found]


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
