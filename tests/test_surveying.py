"""`funcnet atlas`: what is refused before the weights are loaded."""

import json

import pytest
import transformers

from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.atlas.files import read_contexts
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.surveying import make_atlas


@pytest.fixture
def text(tmp_path, texts):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def test_the_atlas_is_of_what_was_asked_for(checkpoint, text, tmp_path):
    atlas = make_atlas(
        checkpoint, text, tmp_path / "atlas", samples=16, window=40, seed=3,
        parameters={"n_components": 5, "decomposer": "pca"},
    )  # fmt: skip
    assert len(atlas.networks) == 15 and atlas.facts["settings"]["seed"] == 3
    assert atlas.facts["data"] | {"fingerprint": ""} == {
        "samples": 16, "tokens": 640, "fingerprint": "",
    }  # fmt: skip
    assert atlas.facts["settings"]["scorer"]["samples_per_group"] == 8
    assert atlas.facts["model"]["source"] == str(checkpoint)
    assert read_atlas(tmp_path / "atlas").facts == json.loads(json.dumps(atlas.facts))


def test_contexts_name_the_document_of_their_token(checkpoint, texts, tmp_path):
    path = tmp_path / "text.jsonl"
    rows = [{"text": letter * 50, "title": letter.upper()} for letter in "abcdefghijklmnop"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_atlas(checkpoint, path, tmp_path / "atlas", samples=16, window=40,
               parameters={"n_components": 5, "decomposer": "pca"})  # fmt: skip
    contexts = read_contexts(tmp_path / "atlas")
    assert {row["source"] for row in contexts} == {str(path)}
    for row in contexts:
        assert row["token"].upper() == row["title"]
        assert row["record"] == ord(row["token"]) - ord("a") + 1
    assert len({row["title"] for row in contexts}) > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"n_components": 96}}, "n_components=96 needs more than 96 signals"),
        ({"parameters": {"n_components": 60}, "window": 4}, "n_components=60 does not fit"),
        ({"parameters": {"strategy": "both"}}, "strategy='both'"),
        ({"parameters": {"networks": 5}}, "has no parameter 'networks'"),
        ({"parameters": {"decomposer": "lda"}}, "no decomposer 'lda'"),
        ({"parameters": {"samples_per_group": 20}}, "one group needs samples_per_group=20"),
        ({"samples": 1000, "window": 100}, "give more text, a shorter window or fewer samples"),
        ({"window": 100_000}, "one sample needs 128"),
        ({"text_column": "page"}, "no column 'page'"),
        ({"data": "gone.jsonl"}, "does not exist"),
        ({"model": "."}, "is not a checkpoint"),
        ({"out": "."}, "is not empty"),
    ],
)
def test_mistakes_are_found_before_weights_are_loaded(
    checkpoint, text, tmp_path, monkeypatch, changes, message
):
    class Refusing(transformers.AutoModelForCausalLM):
        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers, "AutoModelForCausalLM", Refusing)
    given = {"model": checkpoint, "data": text, "out": tmp_path / "atlas", "samples": 16,
             "window": 40} | changes  # fmt: skip
    if changes.get("window") == 100_000:
        text.write_text('{"text": "abc"}\n')
    with pytest.raises(FuncnetError, match=message) as error:
        make_atlas(given.pop("model"), given.pop("data"), given.pop("out"), **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "atlas").exists()
