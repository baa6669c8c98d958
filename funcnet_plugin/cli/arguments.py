"""What several commands take, and how their arguments are read."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from funcnet_plugin.errors import FuncnetError

Model = Annotated[str, typer.Argument(help="Checkpoint directory or hub name.")]
Calibration = Annotated[
    list[str],
    typer.Option(
        help="Calibration text: a file of text or of records (JSON, CSV, Parquet), a directory, "
        "or NAME[:CONFIG[:SPLIT]]. Several are mixed, each with its share: "
        "--data a.jsonl:0.5 --data b.jsonl:0.5"
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Windows of the calibration text.")]
Window = Annotated[int, typer.Option(min=2, help="Tokens per window.")]
TextColumn = Annotated[str, typer.Option(help="Field of a record with the text.")]
TestWindow = Annotated[int, typer.Option(min=2, help="Tokens per test window.")]
TestWindows = Annotated[int, typer.Option(min=1, help="Test windows per text.")]
Tasks = Annotated[list[str] | None, typer.Option(help="lm-eval task to score; may be repeated.")]
IncludePath = Annotated[Path | None, typer.Option(help="Directory of your own lm-eval tasks.")]
Limit = Annotated[int | None, typer.Option(help="Questions per task.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]


def recipe_fields(assignments: list[str]) -> dict[str, Any]:
    """Read FIELD=VALUE, the value as YAML."""
    return {name: _value(value) for name, value in pairs_of(assignments, "--set").items()}


def swept_fields(assignments: list[str]) -> dict[str, list[Any]]:
    """Read FIELD=VALUE,VALUE, the values as YAML."""
    return {
        name: [_value(value) for value in values.split(",")]
        for name, values in pairs_of(assignments, "--sweep").items()
    }


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FuncnetError(f"the value {text!r} is not valid YAML.") from error


def pairs_of(assignments: list[str], option: str) -> dict[str, str]:
    """Split NAME=VALUE."""
    pairs = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise FuncnetError(f"{option} takes NAME=VALUE, got {assignment!r}.")
        pairs[name] = value
    return pairs


@contextlib.contextmanager
def stdout_for_json(as_json: bool):
    """Send what the hosts print to stderr, so that stdout is one JSON document."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield
