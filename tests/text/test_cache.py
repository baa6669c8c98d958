"""What the model wrote is kept for the next run of any recipe."""

import shutil

import pytest
import torch

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.store import Store
from funcnet_plugin.measure.text import Text
from funcnet_plugin.text import own, writing
from funcnet_plugin.text.cache import TextCache
from funcnet_plugin.text.own import write_continuations, write_own_text
from tests.conftest import make_llama
from tests.hosting import loader, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
FIELDS = {"name": "WidthPruningModifier", "scorer": "effect", "own_text": 0.25, "align": 8}


@pytest.fixture
def times(monkeypatch):
    """One entry for every text that is written and not read."""
    found = []
    monkeypatch.setattr(
        own, "write", lambda *args, **asked: found.append(1) or writing.write(*args, **asked)
    )
    return found


def changed(model):
    """Give the model with another weight somewhere."""
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.01)
    return model


def test_another_recipe_reads_what_was_written(fresh, texts, tmp_path, times):
    cache = str(tmp_path / "a" / "texts")
    distillation = {"name": "distillation", "continuations": 1}
    run(fresh(), texts, recipe(**FIELDS, repair=distillation, text_cache=cache))
    assert len(times) == 2
    other = FIELDS | {"scorer": "surgeon", "pruning_ratio": 0.3, "repair": "least_squares"}
    found = run(fresh(), texts, recipe(**other, text_cache=cache))
    assert len(times) == 2
    expected = run(fresh(), texts, recipe(**other))
    assert len(times) == 3
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
    # where it was kept says nothing about the model
    assert expected.config.functional_network == found.config.functional_network


def test_every_text_has_a_file_of_its_own(texts, tmp_path, times):
    text, shorter = (Text.read(loader(texts, samples=4, window=n)) for n in (24, 20))
    model, another = make_llama(), changed(make_llama())
    asked = [
        lambda: write_own_text(model, text, 0.5, 0, cache=TextCache(tmp_path, model)).windows,
        lambda: write_own_text(model, text, 0.5, 1, cache=TextCache(tmp_path, model)).windows,
        lambda: write_own_text(model, shorter, 0.5, 0, cache=TextCache(tmp_path, model)).windows,
        lambda: write_own_text(another, text, 0.5, 0, cache=TextCache(tmp_path, another)).windows,
        lambda: write_own_text(
            model, text, 0.5, 5, Processes(1, 2), cache=TextCache(tmp_path, model)
        ).windows,
        lambda: write_continuations(
            model, text, 1, 0, cache=TextCache(tmp_path, model)
        ).batches[0]["input_ids"],
    ]  # fmt: skip
    written = [ask() for ask in asked]
    assert len(times) == len(list(tmp_path.iterdir())) == len(asked)
    for before, ask in zip(written, asked, strict=True):
        assert torch.equal(before, ask())
    assert len(times) == len(asked)


def test_other_special_tokens_make_another_text(texts, tmp_path, times):
    text = Text.read(loader(texts, samples=4, window=24))
    for special in (2, 7):
        model = make_llama()
        model.generation_config.eos_token_id = special
        found = write_own_text(model, text, 0.5, 0, cache=TextCache(tmp_path, model)).windows
        assert special not in found
    assert len(times) == 2


def test_a_resumed_run_needs_no_cache_and_fills_none(texts, tmp_path, times):
    model, text = make_llama(), Text.read(loader(texts, samples=4, window=24))
    store, cache = Store(tmp_path / "run", {}), TextCache(tmp_path / "texts", model)
    first = write_own_text(model, text, 0.5, 0, store=store).windows
    again = write_own_text(model, text, 0.5, 0, store=store, cache=cache).windows
    assert torch.equal(first, again) and len(times) == 1
    assert not list((tmp_path / "texts").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path, others: path.write_bytes(b"half"), "is damaged .* text is written again"),
        (lambda path, others: shutil.copy(others, path), r"holds another text .* \(model differ\)"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    fresh, texts, tmp_path, times, change, message
):
    mine, others = tmp_path / "mine", tmp_path / "others"
    run(fresh(), texts, recipe(**FIELDS, text_cache=str(mine)))
    run(changed(fresh()), texts, recipe(**FIELDS, text_cache=str(others)))
    (path,), (other,) = mine.iterdir(), others.iterdir()
    assert path.name != other.name
    change(path, other)
    model = fresh()
    with pytest.raises(CheckpointError, match=f"{path.name} {message}"):
        run(model, texts, recipe(**FIELDS, text_cache=str(mine)))
    assert len(times) == 2
    assert not hasattr(model.config, "functional_network")


def test_a_directory_of_other_things_is_refused_before_anything_is_measured(
    fresh, texts, tmp_path, times
):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".hidden").write_text("the system's")
    for place, message in (
        (tmp_path, r"holds other files \(notes.txt\)"),
        (tmp_path / "notes.txt", "cannot be a directory of texts"),
    ):
        with pytest.raises(CheckpointError, match=f"text_cache: {place} {message}"):
            run(fresh(), texts, recipe(**FIELDS, text_cache=str(place)))
    (tmp_path / "notes.txt").unlink()
    run(fresh(), texts, recipe(**FIELDS, text_cache=str(tmp_path)))
    assert len(times) == 1


def test_what_another_process_is_writing_is_not_in_the_way(texts, tmp_path):
    model, text = make_llama(), Text.read(loader(texts, samples=4, window=24))
    windows = write_own_text(model, text, 0.5, 0, cache=TextCache(tmp_path, model)).windows
    (path,) = tmp_path.iterdir()
    path.rename(f"{path}.4711")
    cache = TextCache(tmp_path, model)
    assert torch.equal(write_own_text(model, text, 0.5, 0, cache=cache).windows, windows)
    assert path.exists()
