"""Looks at what `oneshot` is given as calibration data, before llm-compressor reads it.

It makes the loader before any modifier is asked, and what it cannot read ends in an AttributeError
of its own code. Only runs with one of our modifiers are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.batches import check_repeatable

_NO_LIMIT = 10**9  # what tokenizers without a maximal length say is more than fits an integer


def check_given_data(given: Any, processor: Any) -> None:
    """Refuse what llm-compressor cannot make a loader of.

    Args:
        given: llm-compressor's arguments for the dataset.
        processor: tokenizer of the run.

    Raises:
        CalibrationError: one sentence on what to give instead.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from torch.utils.data import DataLoader

    data = given.dataset
    if data is None:
        return  # our modifiers say that there is none
    asked = given.num_calibration_samples
    if asked is not None and asked < 1:
        raise CalibrationError(f"num_calibration_samples={asked} is none; give at least 1.")
    if isinstance(data, DataLoader):
        check_repeatable(data)
    elif isinstance(data, IterableDataset | IterableDatasetDict):
        raise CalibrationError(
            "a streaming dataset has no length and oneshot needs one; give "
            "datasets.Dataset.from_list(list(dataset.take(512)))."
        )
    elif isinstance(data, Dataset | DatasetDict):
        part = data.get("train") if isinstance(data, DatasetDict) else data
        if part is not None:
            _check_columns(part, given, processor)
        elif not given.splits:
            raise CalibrationError(
                f"the dataset has the splits {', '.join(data) or 'of none'} and none is called "
                "train; give one of them as dataset=, or splits=."
            )
    elif isinstance(data, str):
        _check_name(data, given)
    else:
        raise CalibrationError(f"oneshot cannot calibrate on {_what_to_give(data)}.")


def _check_columns(data: Any, given: Any, processor: Any) -> None:
    if len(data) == 0:
        raise CalibrationError("the calibration data is empty.")
    tokenized = {"input_ids", *getattr(processor, "model_input_names", ())}
    if given.preprocessing_func is not None:
        return
    if tokenized & set(data.column_names):
        _check_column(data, "input_ids", "lists of token ids", is_text=False)
        return
    if given.text_column not in data.column_names and "text" not in data.column_names:
        raise CalibrationError(
            f"the dataset has neither input_ids nor a column {given.text_column!r} but "
            f"{', '.join(data.column_names)}; say which one holds the text (text_column=), or "
            "tokenize it."
        )
    if given.text_column != "text" and {"text", given.text_column} <= set(data.column_names):
        raise CalibrationError(
            f"llm-compressor reads the column 'text' where there is one, and not "
            f"{given.text_column!r}; give dataset.remove_columns('text')."
        )
    column = given.text_column if given.text_column in data.column_names else "text"
    _check_column(data, column, "texts", is_text=True)
    tokenizer = getattr(processor, "tokenizer", processor)
    limit = given.max_seq_length or getattr(tokenizer, "model_max_length", 0)
    if min(limit, getattr(tokenizer, "model_max_length", limit)) > _NO_LIMIT:
        raise CalibrationError(
            "the tokenizer has no maximal length, and oneshot cuts every text at one; give "
            "max_seq_length=2048, for instance."
        )


def _check_column(data: Any, name: str, wanted: str, is_text: bool) -> None:
    """Refuse a column of another type, or with rows that hold nothing."""
    if name not in data.column_names:
        return  # the batches show what there is
    kind = getattr(data.features[name], "dtype", "list")
    if ("string" in kind) != is_text:
        raise CalibrationError(
            f"column {name!r} of the dataset holds {kind} where {wanted} should be."
        )
    if data.data.column(name).null_count:  # of the table, of which this may be a part
        blank = [i for i, value in enumerate(data[name]) if value is None]
        if blank:
            raise CalibrationError(
                f"row {blank[0]} of the dataset holds nothing in column {name!r} ({len(blank)} of "
                f"{len(data)} rows); leave such rows out, by dataset.filter."
            )


def _check_name(name: str, given: Any) -> None:
    from llmcompressor.transformers.data import TextGenerationDataset

    if given.dataset_path is not None:
        return
    if Path(name).suffix and Path(name).exists():
        raise CalibrationError(
            f"oneshot takes no file as its dataset: give dataset='json' and dataset_path= the "
            f"directory of {name}, or what datasets.load_dataset makes of it."
        )
    known = sorted(set(TextGenerationDataset.registered_names()) - {"custom"})
    if name.replace("_", "-").lower() not in known:
        raise CalibrationError(
            f"llm-compressor has no dataset called {name!r} but {', '.join(known)}; give what "
            f"datasets.load_dataset({name!r}) makes of it."
        )


def _what_to_give(data: Any) -> str:
    if isinstance(data, list | tuple):
        if data and all(isinstance(item, str) for item in data):
            return "a list of texts; give datasets.Dataset.from_dict({'text': texts})"
        if data and all(isinstance(item, Mapping) for item in data):
            return "a list of records; give datasets.Dataset.from_list(records)"
    if isinstance(data, Iterator):
        return (
            f"a {type(data).__name__}, which can be read once only; give a datasets.Dataset or a "
            "DataLoader over list(...) of it"
        )
    much = "" if isinstance(data, Iterable) else ", which holds no samples"
    return (
        f"a {type(data).__name__}{much}; give a datasets.Dataset with a column text or input_ids, "
        "or a DataLoader of dictionaries with input_ids"
    )
