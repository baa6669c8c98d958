"""Reads calibration text from files and datasets: documents, with the share of every source."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.documents import Document
from funcnet_plugin.text.files import Content, is_text_file, read
from funcnet_plugin.text.records import records_of, texts_of, titles_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SHARE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.IGNORECASE)


def load_texts(
    data: str | Path | Sequence[Any],
    text_column: str = "text",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """Read the text of documents, see `load_documents`."""
    return [document.text for document in load_documents(data, text_column, tokenizer)]


def load_documents(
    data: str | Path | Sequence[Any],
    text_column: str = "text",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Document]:
    """Read documents from wherever the user has them.

    Args:
        data: documents or records; a file of text (one document) or of records (JSON lines, JSON,
            CSV, TSV, Parquet, Arrow), also compressed; a directory of such files, or of a dataset
            that was saved there; or a name on the hub, ``NAME``, ``NAME:SPLIT`` with a slice,
            ``NAME:CONFIG`` or ``NAME:CONFIG:SPLIT``, the split as `datasets` reads it:
            ``train[:100]``, ``train+test``, "train" if not given.
        text_column: the field of a record that holds the text, see `records.texts_of`.
        tokenizer: makes text of conversations, by its chat template.

    Returns:
        documents with something in them; blank ones are dropped.

    Raises:
        CalibrationError: nothing there, not readable, no such column, or only blank text.
    """
    source = str(data) if isinstance(data, str | Path) else "the given texts"
    held: list[Document] = []
    with tempfile.TemporaryDirectory(prefix="funcnet-") as scratch:
        for where, found in _contents(data, text_column, Path(scratch)):
            is_text = isinstance(found, list)
            texts = found if is_text else texts_of(found, text_column, where, tokenizer)
            titles = [None] * len(texts) if is_text else titles_of(found, text_column)
            numbers = range(1, len(texts) + 1) if len(texts) != 1 else [None]
            held += [
                Document(text, where, number, title)
                for text, number, title in zip(texts, numbers, titles, strict=True)
                if text and text.strip()
            ]
    if not held:
        raise CalibrationError(f"{source} holds no text: it is empty or all lines are blank.")
    return held


def _contents(
    data: str | Path | Sequence[Any], text_column: str, scratch: Path
) -> Iterable[Content]:
    if not isinstance(data, str | Path):
        return [Content("the given texts", _given(list(data), text_column))]
    source, path = str(data), Path(data).expanduser()
    if path.exists():
        return read(path, text_column, scratch)
    if is_text_file(source) or source.startswith((".", "/", "~")):
        raise CalibrationError(f"the text file {source} does not exist.")
    return [Content(source, _from_hub(source))]


def _given(values: list[Any], text_column: str) -> list[str | None] | Dataset:
    from datasets import Dataset

    if all(isinstance(value, str | None) for value in values):
        return values
    return Dataset.from_list(records_of(values, text_column, "the given data"))


def _from_hub(source: str) -> Dataset:
    from datasets import load_dataset

    name, *others = _parts(source)
    if len(others) == 1 and "[" in others[0]:  # a slice is of a split
        others = ["", *others]
    config, split = [*others, "", ""][:2]
    try:
        return load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # datasets passes on those of every library that it reads with
        why = (str(error).strip().splitlines() or [""])[0]
        raise CalibrationError(
            f"{source} is neither a file nor a dataset that can be loaded here "
            f"({type(error).__name__}: {why})."
        ) from error


def _parts(source: str) -> list[str]:
    """Split ``NAME:CONFIG:SPLIT`` at its colons; that of a slice belongs to it."""
    return re.split(r":(?![^\[]*\])", source)


def load_sources(
    data: str | Path | Sequence[Any] | Mapping[str, float],
    text_column: str = "text",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[tuple[list[Document], float]]:
    """Read the documents of every source, with its share of the samples.

    Args:
        data: one source as in `load_documents`, or several with their shares, which need
            not sum to 1.
        text_column, tokenizer: see `load_documents`.

    Raises:
        CalibrationError: as `load_documents`; or a share that is not positive.
    """
    if not isinstance(data, Mapping):
        return [(load_documents(data, text_column, tokenizer), 1.0)]
    for source, share in data.items():
        if not 0 < share < math.inf:
            raise CalibrationError(
                f"the share of {source} must be a positive number, got {share:g}."
            )
    total = sum(data.values())
    return [
        (load_documents(source, text_column, tokenizer), share / total)
        for source, share in data.items()
    ]


def parse_sources(values: Sequence[str]) -> dict[str, float]:
    """Read ``SOURCE`` or ``SOURCE:SHARE``, as the command line has them; a share not said is 1.

    Raises:
        CalibrationError: the same source twice.
    """
    sources: dict[str, float] = {}
    for value in values:
        source, _, last = value.rpartition(":")
        if source and _SHARE.fullmatch(last) and not Path(value).expanduser().exists():
            share = float(last)
        else:
            source, share = value, 1.0
        if source in sources:
            raise CalibrationError(f"the calibration source {source} is given twice.")
        sources[source] = share
    return sources
