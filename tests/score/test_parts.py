"""The scorers that a recipe can name."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.score.parts import SCORERS
from tests.families import FAMILIES
from tests.hosting import logits, networks, recipe, run
from tests.parts import Early, bringing
from tests.surveys import write_survey

pytestmark = pytest.mark.usefixtures("forget_the_session")
OURS = list(SCORERS.all())


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("family", ["llama", "glm", "opt", "gpt2"])
def test_every_scorer_prunes_every_layout(texts, tmp_path, name, family):
    FAMILIES[family].build().save_pretrained(tmp_path / "dense")
    scorer = {"networks": networks(), "atlas": {"name": "atlas", "path": str(tmp_path / "atlas")}}
    scorer = scorer.get(name, name)
    if name == "atlas":
        write_survey(str(tmp_path / "dense"), texts, tmp_path / "atlas")
    text = recipe("WidthPruningModifier", scorer=scorer, align=8, pruning_ratio=0.1)
    model = run(str(tmp_path / "dense"), texts, text, output_dir=str(tmp_path / "out"))
    assert torch.isfinite(logits(model)).all()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    written = again.config.functional_network["settings"]["scorer"]
    assert written == SCORERS.make(scorer).settings() and written["name"] == name


def test_an_unknown_scorer_is_named_with_the_known_ones(fresh, texts):
    with pytest.raises(RecipeError, match="no scorer 'best'; choose one of effect, flap"):
        run(fresh(), texts, recipe("WidthPruningModifier", scorer="best"))


def test_a_plugin_brings_a_scorer(fresh, texts):
    source = fresh()
    rows = bind(source).blocks[0].up.weight.detach().clone()
    with bringing(SCORERS, Early):
        model = run(source, texts, recipe("WidthPruningModifier", scorer="early"))
        block = bind(model).blocks[0]
        assert torch.equal(block.up.weight, rows[: block.width])
        with (
            bringing(SCORERS, Early, source="again"),
            pytest.raises(RecipeError, match="mine and again both bring a scorer called 'early'"),
        ):
            SCORERS.all()
    assert list(SCORERS.all()) == OURS
