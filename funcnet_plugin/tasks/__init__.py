"""lm-eval tasks: the paper's as YAML in this folder, and tasks made from local files.

lm-eval finds both through `--include_path`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from funcnet_plugin.errors import CalibrationError

FOLDER = Path(__file__).parent


def write_task(folder: Path, name: str, data: Path, body: Mapping[str, Any]) -> str:
    """Write the YAML of a task whose documents are the lines of a local jsonl file.

    Args:
        folder: an existing directory, for `--include_path`.
        name: of the task.
        data: the jsonl file.
        body: the rest of the task, in lm-eval's terms.

    Returns:
        `name`.
    """
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        **body,
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return name


def metric(name: str, aggregation: str, *, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def text_task(column: str, metrics: Sequence[str] = ("word_perplexity", "byte_perplexity")) -> dict:
    """Perplexity of documents, each from its own beginning, in windows of the model's length.

    Per word or per byte, so that models with other tokenizers compare; nothing is detokenised.
    """
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{" + column + "}}",
        "metric_list": [metric(m, "weighted_perplexity", higher_is_better=False) for m in metrics],
    }


def pairs_task() -> dict:
    """BLiMP: the grammatical sentence of a pair must be the likelier one. Chance is 0.5."""
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [metric("acc", "mean", higher_is_better=True)],
    }


def write_local_tasks(
    out: Path, texts: Mapping[str, Path], pairs: Sequence[Path], column: str
) -> list[str]:
    """Tasks for text files and for files of sentence pairs.

    Args:
        out: directory for the YAML files, made if need be.
        texts: task name -> jsonl file whose field `column` is a document.
        pairs: jsonl files with sentence_good and sentence_bad; the task is called after the file.
        column: see `texts`.

    Returns:
        the names of the tasks.

    Raises:
        CalibrationError: a file does not exist, or its first line lacks a field.
    """
    wanted = [(path, (column,)) for path in texts.values()]
    wanted += [(path, ("sentence_good", "sentence_bad")) for path in pairs]
    for path, fields in wanted:
        _check_first_line(path, fields)
    out.mkdir(parents=True, exist_ok=True)
    names = [write_task(out, name, path, text_task(column)) for name, path in texts.items()]
    return names + [write_task(out, f"pairs_{path.stem}", path, pairs_task()) for path in pairs]


def _check_first_line(path: Path, fields: Sequence[str]) -> None:
    try:
        with path.open() as file:
            first = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read as jsonl: {error}.") from error
    missing = [f for f in fields if not isinstance(first, dict) or f not in first]
    if missing:
        raise CalibrationError(f"the first line of {path} has no field {missing[0]!r}.")
