"""Calibration text: files or datasets -> token windows -> the DataLoader that oneshot takes."""

from __future__ import annotations

import math
import random
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.own_text import write_windows
from funcnet_plugin.records import records_of, texts_of
from funcnet_plugin.text_files import Content, is_text_file, read

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

OWN_TEXT = "self"  # as a source: what the model writes, see `own_text`
Source = list[str] | str  # documents, or OWN_TEXT
_SHARE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.IGNORECASE)


def load_texts(
    data: str | Path | Sequence[Any],
    text_column: str = "text",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """Documents from wherever the user has them.

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
    texts: list[str | None] = []
    with tempfile.TemporaryDirectory(prefix="funcnet-") as scratch:
        for where, found in _contents(data, text_column, Path(scratch)):
            is_text = isinstance(found, list)
            texts += found if is_text else texts_of(found, text_column, where, tokenizer)
    held = [text for text in texts if text and text.strip()]
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
    """``NAME:CONFIG:SPLIT``, split; the colon of a slice belongs to it."""
    return re.split(r":(?![^\[]*\])", source)


def load_sources(
    data: str | Path | Sequence[Any] | Mapping[str, float],
    text_column: str = "text",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[tuple[Source, float]]:
    """Documents of every source, with its share of the samples.

    Args:
        data: one source as in `load_texts` or OWN_TEXT, or several with their shares, which need
            not sum to 1.
        text_column, tokenizer: see `load_texts`.

    Raises:
        CalibrationError: as `load_texts`; or a share that is not positive.
    """
    if not isinstance(data, Mapping):
        return [(load_source(data, text_column, tokenizer), 1.0)]
    for source, share in data.items():
        if not 0 < share < math.inf:
            raise CalibrationError(
                f"the share of {source} must be a positive number, got {share:g}."
            )
    total = sum(data.values())
    return [
        (load_source(source, text_column, tokenizer), share / total)
        for source, share in data.items()
    ]


def load_source(
    data: str | Path | Sequence[Any],
    text_column: str = "text",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Source:
    """`load_texts`, or OWN_TEXT as it is."""
    is_own = isinstance(data, str) and data == OWN_TEXT
    return OWN_TEXT if is_own else load_texts(data, text_column, tokenizer)


def parse_sources(values: Sequence[str]) -> dict[str, float]:
    """``SOURCE`` or ``SOURCE:SHARE``, as the command line has them; without a share it is 1.

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


def mixed_windows(
    sources: Sequence[tuple[Source, float]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
    model: str | Path | None = None,
) -> list[list[int]]:
    """`token_windows` of every source, as many as its share, in one random order.

    So every group of samples holds all sources.

    Args:
        model: who writes OWN_TEXT.

    Raises:
        CalibrationError: a source does not fill one window, or gets no sample.
    """

    def draw(source: Source, count: int) -> list[list[int]]:
        if source == OWN_TEXT:
            return write_windows(model, tokenizer, window=window, samples=count, seed=seed)
        return token_windows(source, tokenizer, window=window, samples=count, seed=seed)

    if len(sources) == 1:
        return draw(sources[0][0], samples)
    windows = []
    for source, share in sources:
        count = round(samples * share)
        if count == 0:
            raise CalibrationError(
                f"a share of {share:.3g} of {samples} samples is none; give more samples."
            )
        windows += draw(source, count)
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


def make_loader(windows: Sequence[Sequence[int]], batch_size: int = 1) -> DataLoader:
    """The windows, in order, as ``{"input_ids", "attention_mask"}`` batches, int64."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    rows = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        for ids in windows
    ]
    return DataLoader(rows, batch_size=batch_size, shuffle=False, collate_fn=default_data_collator)
