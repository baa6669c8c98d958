"""Turns documents into the ids of tokens, some at a time: a tokenizer keeps much beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from funcnet_plugin.bars import bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 2**22  # of what is tokenized at once, if one document does not have more


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Tokenize texts as the tokenizer does it for the model, special tokens included.

    Yields:
        the ids of one text after another; who has enough may stop.
    """
    parts = _parts(texts)
    title = "tokenizing" if len(parts) > 1 else ""
    for part in bar(parts, title, "part", within=True):
        yield from tokenizer(part, add_special_tokens=True, verbose=False)["input_ids"]


def _parts(texts: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    room = 0
    for text in texts:
        if not parts or len(text) > room:
            parts.append([])
            room = _CHARACTERS
        parts[-1].append(text)
        room -= len(text)
    return parts
