"""lm-eval tasks: the paper's as YAML in this folder, and tasks made from local files.

lm-eval finds both through `--include_path`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import CalibrationError, FuncnetError
from funcnet_plugin.text.sources import load_texts

FOLDER = Path(__file__).parent
_PAIR = ("sentence_good", "sentence_bad")
_SAFE = re.compile(r"\w[\w.-]*")
_UNSAFE = re.compile(r"[^\w-]+")
_PATTERN = re.compile(r"[*?\[\]{}!]|::|://")  # what a path means more with, for fsspec


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


def write_mean(folder: Path, name: str, tasks: Sequence[str], measure: str) -> None:
    """Write the YAML of a group whose score is the mean of its tasks', each counting the same.

    Args:
        folder: an existing directory, for `--include_path`.
        name: of the group.
        tasks: names of its members.
        measure: their metric.
    """
    group = {
        "group": name,
        "task": list(tasks),
        "aggregate_metric_list": [{"metric": measure, "weight_by_size": False}],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(group, sort_keys=False))


def metric(name: str, aggregation: str, *, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def text_task(column: str, metrics: Sequence[str] = ("word_perplexity", "byte_perplexity")) -> dict:
    """Describe the perplexity of documents, each from its own beginning.

    It is taken in windows of the model's length, per word or per byte, so that models with other
    tokenizers compare; nothing is detokenised.
    """
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        # lm-eval takes a template that is the name of a column for that column, whatever is in the
        # name, and leaves its text as it is: no expression is read in it
        "doc_to_target": column,
        "metric_list": [metric(m, "weighted_perplexity", higher_is_better=False) for m in metrics],
    }


def pairs_task() -> dict:
    """Describe BLiMP: of a pair the grammatical sentence must be the likelier. Chance is 0.5."""
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
    """Write tasks for files of text and for files of sentence pairs.

    A jsonl file stays where it is. Of any other, and of one whose name lm-eval would read as a
    pattern, a copy is made beside the tasks.

    Args:
        out: directory for the YAML files, made if need be.
        texts: task name -> file, see `calibration.load_texts`.
        pairs: files of records with sentence_good and sentence_bad; the task is called after the
            file.
        column: the field of a record that is a document.

    Returns:
        the names of the tasks.

    Raises:
        CalibrationError: a file does not exist, or lacks a field.
        FuncnetError: a name that lm-eval cannot be given, or has already.
    """
    named = {f"pairs_{_UNSAFE.sub('_', path.name.partition('.')[0])}": path for path in pairs}
    check_names(list(texts))
    if len(named) < len(pairs):
        raise FuncnetError("two files of pairs have one name, as their tasks would; rename one.")
    documents = {name: _documents(path, column) for name, path in texts.items()}
    sentences = {name: _sentences(path) for name, path in named.items()}
    copies = [*documents.values(), *sentences.values()]
    if _PATTERN.search(str(out.resolve())) and any(rows is not None for rows in copies):
        raise FuncnetError(
            f"lm-eval would read the name of {out} as a pattern; give a directory without any of "
            "* ? [ ] { } ! in its path."
        )
    with saying_full(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, path in texts.items():
            copied = documents[name]
            data = path if copied is None else _copy(out, name, copied)
            write_task(out, name, data, text_task(column if copied is None else "text"))
        for name, path in named.items():
            copied = sentences[name]
            data = path if copied is None else _copy(out, name, copied)
            write_task(out, name, data, pairs_task())
    return [*texts, *named]


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that lm-eval would split at a comma, take for a file, or has a task of.

    Raises:
        FuncnetError: a name that would not be understood, or mean another task.
    """
    for name in names:
        if not _SAFE.fullmatch(name):
            raise FuncnetError(
                f"{name!r} cannot be the name of a task; use letters, digits, _, - and dots, such "
                f"as {_UNSAFE.sub('_', name).strip('_.-') or 'text'}."
            )
        if _is_lm_evals(name):
            raise FuncnetError(f"lm-eval has a task {name!r} of its own; choose another name.")


def _is_lm_evals(name: str) -> bool:
    """Look for it in the files of its tasks: reading all of them as YAML takes ten seconds."""
    (package,) = find_spec("lm_eval").submodule_search_locations
    declared = re.compile(
        rb"^[\s-]*(?:task|group|tag)\s*:\s*[\"']?" + re.escape(name.encode()) + rb"[\"']?\s*$",
        re.MULTILINE,
    )
    files = Path(package, "tasks").rglob("*.yaml")
    return any(declared.search(file.read_bytes()) for file in files)


def _documents(path: Path, column: str) -> list[dict[str, str]] | None:
    """Give what a copy is to hold; None where the file can be read as it is."""
    if _read_by_lm_eval(path, (column,)):
        return None
    return [{"text": text} for text in load_texts(path, column)]


def _sentences(path: Path) -> list[dict[str, str]] | None:
    """See `_documents`."""
    if _read_by_lm_eval(path, _PAIR):
        return None
    good, bad = (load_texts(path, field) for field in _PAIR)
    if len(good) != len(bad):
        raise CalibrationError(f"{path} has a blank sentence; every pair needs both.")
    return [dict(zip(_PAIR, pair, strict=True)) for pair in zip(good, bad, strict=True)]


def _read_by_lm_eval(path: Path, fields: Sequence[str]) -> bool:
    """Tell whether lm-eval's json reader takes this file as it is.

    It must find it by its name, and every line must be a record that holds text in these fields:
    lm-eval knows no field within a field, and writes down what is no text.

    Raises:
        CalibrationError: the file is not there.
    """
    if not path.exists():
        raise CalibrationError(f"{path} cannot be read: it does not exist.")
    if path.suffix != ".jsonl" or _PATTERN.search(str(path.resolve())):
        return False
    try:
        with path.open(encoding="utf-8") as file:
            records = (json.loads(line) for line in file if line.strip())
            first = next(records, None)
            _check_fields(first, fields, path)
            return all(_holds_text(record, fields) for record in chain([first], records))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False  # read by `datasets`, or refused with what is wrong


def _check_fields(record: Any, fields: Sequence[str], path: Path) -> None:
    if not isinstance(record, dict):
        return
    for field in fields:
        if field not in record and field.partition(".")[0] not in record:
            names = ", ".join(record) or "nothing"
            raise CalibrationError(f"the first line of {path} has no field {field!r} but {names}.")


def _holds_text(record: Any, fields: Sequence[str]) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(f), str) for f in fields)


def _copy(out: Path, name: str, rows: Sequence[Mapping[str, str]]) -> Path:
    path = out / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
