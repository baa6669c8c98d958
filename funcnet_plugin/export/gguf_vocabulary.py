"""Reads a tokenizer as GGUF has it: a list of tokens, and how text is split before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funcnet_plugin.errors import CheckpointError

# llama.cpp has the ways to split text by name. Of a `ByteLevel` with its own pattern:
_OF_BYTE_LEVEL, _OF_SINGLE_DIGITS = "gpt-2", "smollm"
# and by the pattern of a `Split` before it:
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_OF_PATTERN = {
    _WORDS + r"\p{N}" + _REST: "qwen2",
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}


@dataclass(frozen=True)
class Vocabulary:
    """Holds what GGUF says of a tokenizer, special tokens and chat template aside.

    Attributes:
        model: `gpt2` for byte pairs, `llama` for SentencePiece.
        pre: how text is split, by llama.cpp's name.
        tokens: by id.
        types: of GGUF, one for each token.
        scores: of SentencePiece.
        merges: of byte pairs, `a b`.
    """

    model: str
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None


def read_vocabulary(source: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Args:
        source: its directory.
        size: rows of the embedding; ids without a token get a name.

    Raises:
        CheckpointError: no tokenizer there, or llama.cpp has none that splits text as it does.
    """
    if (source / "tokenizer.model").exists():
        return _of_sentencepiece(source, size)
    try:
        content = json.loads((source / "tokenizer.json").read_text())
    except OSError as error:
        raise CheckpointError(
            f"{source} has neither tokenizer.json nor tokenizer.model, which GGUF needs."
        ) from error
    model = content["model"]
    pre = _pre(content["pre_tokenizer"])
    if model["type"] != "BPE" or pre is None:
        raise CheckpointError(
            f"the tokenizer of {source} ({model['type']}) splits text in a way that llama.cpp has "
            "no name for; GGUF is written with byte pairs as GPT-2, SmolLM, Qwen 2 and Llama 3 "
            "have them, and with a tokenizer.model of SentencePiece."
        )
    import gguf

    tokens, types = _unnamed(size)
    for token, number in model["vocab"].items():
        if number < size:  # one that has no row is never written
            tokens[number], types[number] = token.encode(), gguf.TokenType.NORMAL
    _put_added(content.get("added_tokens", ()), tokens, types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary("gpt2", pre, tokens, types, merges=merges)


def _pre(splitter: dict[str, Any] | None) -> str | None:
    """Name a way to split text; None if llama.cpp has none like it."""
    steps = (
        [splitter]
        if splitter is None or splitter["type"] != "Sequence"
        else (splitter["pretokenizers"])
    )
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _OF_BYTE_LEVEL
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return _OF_SINGLE_DIGITS
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return _OF_PATTERN.get(pattern)
    return None


def _of_sentencepiece(source: Path, size: int) -> Vocabulary:
    from gguf.vocab import SentencePieceVocab

    try:
        read = SentencePieceVocab(source)
    except ValueError as error:  # ids with a gap
        raise CheckpointError(f"GGUF cannot hold the tokenizer of {source}: {error}") from error
    tokens, types = _unnamed(size)
    scores = [0.0] * size
    for number, (token, score, kind) in enumerate(read.all_tokens()):
        if number < size:
            tokens[number], scores[number], types[number] = token, score, kind
    # its own special tokens are what SentencePiece says
    more = [one for one in _added_beside(source) if one["id"] >= read.vocab_size_base]
    _put_added(more, tokens, types)
    return Vocabulary("llama", "default", tokens, types, scores=scores)


def _added_beside(source: Path) -> list[dict[str, Any]]:
    """List the tokens that a fast tokenizer knows as added; gguf reads an older file alone."""
    path = source / "tokenizer.json"
    return json.loads(path.read_text()).get("added_tokens", []) if path.exists() else []


def _put_added(added: Iterable[dict[str, Any]], tokens: list[bytes], types: list[int]) -> None:
    """Put added tokens into a vocabulary."""
    import gguf

    for one in added:
        if one["id"] < len(tokens):
            kind = gguf.TokenType.CONTROL if one["special"] else gguf.TokenType.USER_DEFINED
            tokens[one["id"]], types[one["id"]] = one["content"].encode(), kind


def _unnamed(size: int) -> tuple[list[bytes], list[int]]:
    """Make a list of tokens that no text has: embeddings are often longer than vocabularies."""
    import gguf

    return [b"[PAD%d]" % i for i in range(size)], [gguf.TokenType.UNUSED] * size
