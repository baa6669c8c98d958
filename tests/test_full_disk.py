"""A full disk is said to be one, wherever it is noticed."""

import errno
import json

import pytest
import torch

from funcnet_plugin import tasks
from funcnet_plugin.cli import main
from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.measure import store
from funcnet_plugin.measure.store import Store
from funcnet_plugin.output import staged
from funcnet_plugin.text.sources import load_texts


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device", "some/file")


def wrapped(*args, **options):
    try:
        full()
    except OSError as error:
        raise RuntimeError("the shard could not be written") from error


def only_said(*args, **options):
    """As safetensors has it."""
    raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [full, wrapped, only_said])
def test_a_checkpoint_on_a_full_disk(tmp_path, fail):
    with (
        pytest.raises(
            CheckpointError, match=r"the disk is full, .* MB are left where .*/out"
        ) as error,
        staged(tmp_path / "out"),
    ):
        fail()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), staged(tmp_path / "out"):
        raise RuntimeError("something else")
    with pytest.raises(PermissionError), saying_full(tmp_path):
        raise PermissionError(errno.EACCES, "no", "file")


def test_a_part_of_a_run_on_a_full_disk(tmp_path, monkeypatch):
    run = Store(tmp_path / "run", {"a": 1})

    def half(held, part, metadata):
        part.write_bytes(b"half")
        only_said()

    monkeypatch.setattr(store, "save_file", half)
    with pytest.raises(CheckpointError, match="the disk is full"):
        run.save("layer-0", {"x": torch.ones(2)}, {})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_text_that_does_not_fit_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    monkeypatch.setattr("datasets.load_dataset", wrapped)
    with pytest.raises(CheckpointError, match="the disk is full"):
        load_texts(tmp_path / "a.jsonl")


def test_tasks_on_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    monkeypatch.setattr(tasks, "write_task", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        tasks.write_local_tasks(tmp_path / "out", {"one": tmp_path / "a.jsonl"}, [], "text")


def test_the_command_line_says_it_of_any_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("funcnet_plugin.inspection.inspect_model", full)
    with pytest.raises(SystemExit) as done:
        main(["inspect", str(tmp_path)])
    assert done.value.code == 2
    assert "the disk is full, " in capsys.readouterr().err


def test_a_library_that_passes_on_the_number_alone_is_understood(tmp_path):
    with pytest.raises(CheckpointError, match="the disk is full"), saying_full(tmp_path):
        raise RuntimeError("I/O error (os error 28)")
    with pytest.raises(RuntimeError, match="another"), saying_full(tmp_path):
        raise RuntimeError("another")
