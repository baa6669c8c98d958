"""A run that was interrupted goes on after its last finished layer, bit for bit."""

import json

import pytest
import torch
from llmcompressor.core import active_session

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.run import ahead
from funcnet_plugin.run.scorings import Scorings
from funcnet_plugin.score.across_layers import NetworksAcrossLayers
from funcnet_plugin.text import own
from tests.hosting import as_dataset, loader, networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
UNION = [networks(), "effect"]
KINDS = {
    "layer by layer": {"repair": "least_squares", "scorer": UNION},
    "bias": {"repair": "bias"},
    "one cut": {"allocation": "threshold", "repair": "least_squares", "scorer": UNION},
    "global": {"scorer": networks(strategy="global"), "repair": "least_squares"},
    "gradients": {
        "scorer": [networks(strategy="global"), "loss_effect", "taylor"],
        "allocation": "threshold",
        "own_text": 0.25,
        "repair": "least_squares",
    },
    "one cut and distillation": {
        "scorer": UNION,
        "allocation": "threshold",
        "own_text": 0.25,
        "repair": {"name": "distillation", "continuations": 1},
    },
    "distillation": {"repair": {"name": "distillation", "continuations": 1}},
}


class InterruptedRunError(Exception):
    pass


@pytest.fixture
def biased(tmp_path):
    """Loads a LLaMA that can carry a bias, from a directory."""
    from transformers import AutoModelForCausalLM

    from tests.conftest import make_llama

    make_llama(mlp_bias=True).save_pretrained(tmp_path / "biased")
    return lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "biased")


def interrupt_at(monkeypatch, layer):
    """Stop like a user does, in the middle of a layer."""
    scored = Scorings.of_layer

    def score(self, unit, *known):
        if unit.index == layer:
            raise InterruptedRunError
        return scored(self, unit, *known)

    monkeypatch.setattr(Scorings, "of_layer", score)


def interrupted(model, texts, text, monkeypatch, layer=2, **options):
    with monkeypatch.context() as patch:
        interrupt_at(patch, layer)
        with pytest.raises(InterruptedRunError):
            run(model, texts, text, **options)
    active_session().lifecycle.recipe.modifiers = []
    active_session().reset()


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_an_uninterrupted_run(biased, texts, tmp_path, monkeypatch, kind):
    whole = run(biased(), texts, recipe(**KINDS[kind]))
    text = recipe(**KINDS[kind], resume_dir=str(tmp_path / "progress"))
    interrupted(biased(), texts, text, monkeypatch)
    finished = {path.name for path in (tmp_path / "progress").glob("layer-*")}
    assert finished == {"layer-0000.safetensors", "layer-0001.safetensors"}
    scored = []
    original = Scorings.of_layer
    monkeypatch.setattr(
        Scorings,
        "of_layer",
        lambda self, unit, *known: scored.append(unit.index) or original(self, unit, *known),
    )
    resumed = run(biased(), texts, text)
    assert scored == [2]  # the others were not done again
    expected = dict(whole.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    blocks = [m.config.functional_network for m in (whole, resumed)]
    assert blocks[0]["measured"] == blocks[1]["measured"]
    assert blocks[0]["settings"] == blocks[1]["settings"]  # where it was kept is no setting
    assert not list((tmp_path / "progress").glob("*.part"))


def test_a_shuffled_dataset_keeps_its_order(fresh, texts, tmp_path, monkeypatch):
    data = as_dataset(loader(texts))
    options = {"dataset": data, "num_calibration_samples": 16, "shuffle_calibration_samples": True}
    text = recipe(resume_dir=str(tmp_path / "progress"))
    whole = run(fresh(), texts, recipe(), **options)
    interrupted(fresh(), texts, text, monkeypatch, layer=1, **options)
    resumed = run(fresh(), texts, text, **options)
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in resumed.named_parameters())


@pytest.mark.parametrize(
    "what", ["settings", "model", "attention", "precision", "frequencies", "data"]
)
def test_another_run_is_refused_with_what_differs(fresh, texts, tmp_path, monkeypatch, what):
    folder = str(tmp_path / "progress")
    interrupted(fresh(), texts, recipe(resume_dir=folder), monkeypatch)
    model, fields, options = fresh(), {}, {}
    if what == "settings":
        fields = {"seed": 1}
    elif what == "model":
        with torch.no_grad():
            bind(model).blocks[1].down.weight.mul_(1.01)
    elif what == "attention":  # as where two adapters of attention were merged into one model
        with torch.no_grad():
            bind(model).blocks[1].decoder_layer.self_attn.q_proj.weight.mul_(1.01)
    elif what == "precision":
        model = model.bfloat16()
    elif what == "frequencies":
        model.config.rope_parameters["rope_theta"] *= 2
    else:
        options = {"dataset": loader(list(reversed(texts)))}
    before = [p.clone() for p in model.parameters()]
    part = what if what in ("settings", "data") else "model"
    with pytest.raises(CheckpointError, match=f"holds another run: {part} differ"):
        run(model, texts, recipe(resume_dir=folder, **fields), **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_damaged_and_foreign_directories_are_named(fresh, texts, tmp_path, monkeypatch):
    folder = tmp_path / "progress"
    interrupted(fresh(), texts, recipe(resume_dir=str(folder)), monkeypatch)
    (folder / "layer-0000.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"layer-0000.safetensors is damaged .* done again"):
        run(fresh(), texts, recipe(resume_dir=str(folder)))
    active_session().reset()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="holds other files"):
        run(fresh(), texts, recipe(resume_dir=str(tmp_path / "mine")))


@pytest.mark.parametrize("kind", ["one cut", "global", "gradients", "one cut and distillation"])
def test_another_ratio_of_one_cut_measures_nothing_again(fresh, texts, tmp_path, monkeypatch, kind):
    other = {"pruning_ratio": 0.3, "align": 2, "ratio_scope": "mlp"}
    expected = run(fresh(), texts, recipe(**KINDS[kind] | other))
    text = recipe(**KINDS[kind], resume_dir=str(tmp_path / "progress"))
    run(fresh(), texts, text)

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(Scorings, "of_layer", refuse)
    monkeypatch.setattr(NetworksAcrossLayers, "_decompose", refuse)
    monkeypatch.setattr(ahead, "weight_gradients", refuse)
    monkeypatch.setattr(ahead, "output_gradients", refuse)
    monkeypatch.setattr(ahead, "moments_of", refuse)
    monkeypatch.setattr(own, "write", refuse)
    again = run(
        fresh(), texts, recipe(**KINDS[kind] | other, resume_dir=str(tmp_path / "progress"))
    )
    blocks = [m.config.functional_network for m in (expected, again)]
    assert blocks[0]["measured"] == blocks[1]["measured"]
    assert blocks[0]["kept_widths"] == blocks[1]["kept_widths"]
    parameters = dict(expected.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in again.named_parameters())


def test_another_ratio_is_another_run_where_layers_see_pruned_ones(fresh, texts, tmp_path):
    text = recipe(resume_dir=str(tmp_path / "progress"))
    run(fresh(), texts, text)
    with pytest.raises(CheckpointError, match="holds another run: settings differ"):
        run(fresh(), texts, recipe(pruning_ratio=0.3, resume_dir=str(tmp_path / "progress")))
