"""Calibration text: files or datasets -> token windows -> the DataLoader that oneshot takes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.own_text import write_windows

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

OWN_TEXT = "self"  # as a source: what the model writes, see `own_text`
Source = list[str] | str  # documents, or OWN_TEXT
_JSON = (".json", ".jsonl")
_TEXT = (".txt", ".md", ".text")


def load_texts(data: str | Path | Sequence[str], text_column: str = "text") -> list[str]:
    """Documents from wherever the user has them.

    Args:
        data: documents; a .txt file (one document); a .jsonl or .json file (one document per
            record); or a name on the hub, ``NAME``, ``NAME:CONFIG`` or ``NAME:CONFIG:SPLIT``
            (split "train" if not given).
        text_column: the field of a record that holds the text.

    Returns:
        documents with something in them; blank ones are dropped.

    Raises:
        CalibrationError: nothing there, not readable, no such column, or only blank text.
    """
    if isinstance(data, str | Path):
        source = str(data)
        texts = _read(source, text_column)
    else:
        source, texts = "the given texts", list(data)
    texts = [text for text in texts if text and text.strip()]
    if not texts:
        raise CalibrationError(f"{source} holds no text: it is empty or all lines are blank.")
    return texts


def _read(source: str, text_column: str) -> list[str]:
    path = Path(source)
    if path.is_file() and path.suffix not in _JSON:
        try:
            return [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"{source} is not UTF-8 text; give a .txt, .jsonl or .json file."
            ) from error
    if path.is_dir():
        raise CalibrationError(
            f"{source} is a directory; give one .txt, .jsonl or .json file, or a dataset name."
        )
    if not path.exists() and (path.suffix in _JSON + _TEXT or source.startswith((".", "/", "~"))):
        raise CalibrationError(f"the text file {source} does not exist.")

    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if path.is_file():
        if path.stat().st_size == 0:
            return []
        try:
            rows = load_dataset("json", data_files=str(path), split="train")
        except (DatasetGenerationError, ValueError) as error:
            raise CalibrationError(
                f"{source} is not valid JSON lines: {error.__cause__ or error}."
            ) from error
    else:
        name, config, split = [*source.split(":"), "", ""][:3]
        try:
            rows = load_dataset(name, config or None, split=split or "train")
        except (OSError, ValueError) as error:
            raise CalibrationError(
                f"{source} is neither a file nor a dataset that can be loaded here "
                f"({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
    if text_column not in rows.column_names:
        raise CalibrationError(
            f"{source} has no column {text_column!r} but {', '.join(rows.column_names)}; "
            "say which one holds the text (--text-column)."
        )
    column = list(rows[text_column])
    if any(not isinstance(text, str | None) for text in column):
        raise CalibrationError(f"column {text_column!r} of {source} does not hold text.")
    return column


def load_sources(
    data: str | Path | Sequence[str] | Mapping[str, float], text_column: str = "text"
) -> list[tuple[Source, float]]:
    """Documents of every source, with its share of the samples.

    Args:
        data: one source as in `load_texts` or OWN_TEXT, or several with their shares, which need
            not sum to 1.
        text_column: see `load_texts`.

    Raises:
        CalibrationError: as `load_texts`; or a share that is not positive.
    """
    if not isinstance(data, Mapping):
        return [(load_source(data, text_column), 1.0)]
    for source, share in data.items():
        if not 0 < share < math.inf:
            raise CalibrationError(
                f"the share of {source} must be a positive number, got {share:g}."
            )
    total = sum(data.values())
    return [(load_source(source, text_column), share / total) for source, share in data.items()]


def load_source(data: str | Path | Sequence[str], text_column: str = "text") -> Source:
    """`load_texts`, or OWN_TEXT as it is."""
    return OWN_TEXT if data == OWN_TEXT else load_texts(data, text_column)


def parse_sources(values: Sequence[str]) -> dict[str, float]:
    """``SOURCE`` or ``SOURCE:SHARE``, as the command line has them; without a share it is 1.

    Raises:
        CalibrationError: the same source twice.
    """
    sources: dict[str, float] = {}
    for value in values:
        source, _, last = value.rpartition(":")
        try:
            share = float(last)
        except ValueError:
            source, share = value, 1.0
        if not source:
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
