"""Finds the places of a text that move each network most, and least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.text.documents import Document

PLACES = 8  # of each kind, for each network
BEFORE, AFTER = 24, 8  # tokens that are shown around a place
DocumentAt = Callable[[int, int], Document]  # of a sample and a position in it


def contexts(
    names: Sequence[str],
    courses: Tensor,
    samples: Sequence[Sequence[int]],
    decode: Callable[[int], str],
    document_at: DocumentAt,
) -> Iterator[dict[str, Any]]:
    """Find the highest and lowest tokens of each network, one of each sample at most.

    Args:
        names: of the networks.
        courses: (n_tokens, k), standardised.
        samples: tokens of each, as long as the courses together.
        decode: gives the text of a token.
        document_at: tells which document a token is of.

    Yields:
        rows of plain values: `network`; `rank`, 1 for the highest and -1 for the lowest; `activity`
        there, in deviations; `sample` and `position` of the token; `token`, its text; `tokens` and
        `activities` of the text around it, and `at`, which of these it is; `source`, `record` and
        `title` of the token's document.
    """
    parts = courses.split([len(sample) for sample in samples])
    for sign in (1, -1):
        peaks, places = zip(*((sign * part).max(0) for part in parts), strict=True)
        peaks, places = torch.stack(peaks), torch.stack(places)  # (n_samples, k)
        best = peaks.topk(min(PLACES, len(samples)), dim=0).indices
        for k, name in enumerate(names):
            for rank, number in enumerate(best[:, k].tolist(), 1):
                tokens, place = samples[number], int(places[number, k])
                begin, end = max(0, place - BEFORE), min(len(tokens), place + AFTER + 1)
                around = parts[number][begin:end, k]
                document = document_at(number, place)
                yield {
                    "network": name,
                    "rank": sign * rank,
                    "activity": float(parts[number][place, k]),
                    "sample": number,
                    "position": place,
                    "source": document.source,
                    "record": document.record,
                    "title": document.title,
                    "token": decode(tokens[place]),
                    "at": place - begin,
                    "tokens": [decode(token) for token in tokens[begin:end]],
                    "activities": [round(float(value), 3) for value in around],
                }
