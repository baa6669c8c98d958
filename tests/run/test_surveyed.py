"""`atlas: DIR` in a recipe: a pruning run that leaves the networks it was pruned by."""

import json

import pytest

from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.atlas.files import read_contexts
from funcnet_plugin.checkpoints.block import read_kept
from funcnet_plugin.errors import AtlasError, CheckpointError, RecipeError
from funcnet_plugin.run import surveyed
from tests.hosting import logits, networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
SCORER = networks({"n_init": 2})


def pruned(fresh, texts, out, **fields):
    run(fresh(), texts, recipe(**{"scorer": SCORER} | fields), output_dir=str(out))
    return read_kept(out)


@pytest.mark.parametrize("strategy", ["local", "windows", "global"])
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_the_run_is_the_one_that_takes_its_atlas(fresh, texts, tmp_path, strategy, allocation):
    atlas = tmp_path / "atlas"
    scorer = networks({"n_init": 2}, strategy=strategy, layers_per_window=2)
    fields = {"allocation": allocation, "repair": "least_squares"}
    left = pruned(fresh, texts, tmp_path / "left", scorer=scorer, atlas=str(atlas), **fields)
    taken = {"name": "atlas", "path": str(atlas)}
    assert left == pruned(fresh, texts, tmp_path / "taken", scorer=taken, **fields)
    found = read_atlas(atlas)
    assert len(found.networks) == {"local": 18, "windows": 12, "global": 6}[strategy]
    assert found.facts["model"]["widths"] == [48, 48, 48]


def test_one_survey_serves_every_ratio(fresh, texts, tmp_path, monkeypatch):
    atlas = str(tmp_path / "atlas")
    direct = {r: pruned(fresh, texts, tmp_path / f"d{r}", pruning_ratio=r, allocation="threshold")
              for r in (0.1, 0.3)}  # fmt: skip
    found = {}
    for ratio in direct:
        fields = {"pruning_ratio": ratio, "allocation": "threshold", "atlas": atlas}
        found[ratio] = pruned(fresh, texts, tmp_path / str(ratio), **fields)
        monkeypatch.setattr(surveyed, "survey", lambda *a: pytest.fail("surveyed again"))
    assert found == direct


def test_contexts_are_text_where_the_run_has_a_tokenizer(fresh, texts, tmp_path):
    pruned(fresh, texts, tmp_path / "out", atlas=str(tmp_path / "atlas"))
    tokens = {row["token"] for row in read_contexts(tmp_path / "atlas")}
    assert tokens <= {*" abcdefghijklmnopqrstuvwxyz.\n", "<s>", "</s>", "<pad>"}


def test_config_json_says_that_networks_are_those_of_the_dense_model(fresh, texts, tmp_path):
    pruned(fresh, texts, tmp_path / "with", atlas=str(tmp_path / "atlas"))
    pruned(fresh, texts, tmp_path / "without")
    settings = [
        json.loads((tmp_path / name / "config.json").read_text())["functional_network"]["settings"]
        for name in ("with", "without")
    ]
    assert settings[0]["atlas"] == str(tmp_path / "atlas") and "atlas" not in settings[1]
    assert settings[0]["scorer"] == settings[1]["scorer"]


def test_an_atlas_of_another_run_is_refused(fresh, texts, tmp_path):
    atlas = str(tmp_path / "atlas")
    pruned(fresh, texts, tmp_path / "out", atlas=atlas)
    for other, message in [
        ({"texts": texts[::-1]}, "its data differ"),
        ({"seed": 1, "texts": texts}, "its data, its seed differ|its seed differ"),
        ({"scorer": networks({"n_init": 3})}, "the parameters of its networks differ"),
    ]:
        text = other.pop("texts", texts)
        model = fresh()
        before = logits(model)
        with pytest.raises(AtlasError, match=message):
            run(model, text, recipe(**{"scorer": SCORER, "atlas": atlas} | other))
        assert logits(model).equal(before)


def test_what_cannot_have_an_atlas_is_refused_first(fresh, texts, tmp_path):
    atlas = str(tmp_path / "atlas")
    with pytest.raises(RecipeError, match="the recipe has no such scorer"):
        run(fresh(), texts, recipe("WidthPruningModifier", scorer="effect", atlas=atlas))
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt"):
        run(fresh(), texts, recipe(scorer=SCORER, atlas=atlas))
    assert (tmp_path / "atlas" / "notes.txt").read_text() == "mine"
