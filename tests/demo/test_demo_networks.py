"""The study of the demo's networks, on a small model that knows nothing."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.demo import networks
from funcnet_plugin.demo.networks import find_networks
from funcnet_plugin.demo.run import MODEL
from funcnet_plugin.demo.skills import SKILLS
from funcnet_plugin.lesions.effects import read_effects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("COMPONENTS", 4), ("CHOSEN_ON", 20), ("TOLD_ON", 8), ("DRAWS", 2)):
            patch.setattr(networks, name, value)
        return find_networks(folder / "model", folder), folder


def test_networks_are_chosen_on_other_questions_than_those_they_are_told_on(found):
    _, folder = found
    for skill in SKILLS:
        chosen, told = (
            (folder / "lesions" / f"tasks-{half}" / f"{skill}.jsonl").read_text().splitlines()
            for half in ("choose", "tell")
        )
        assert (len(chosen), len(told)) == (20, 8)
        prompts = {json.loads(line)["prompt"] for line in (*chosen, *told)}
        assert len(prompts) == 28


def test_every_figure_is_that_of_the_lesion_study(found):
    anatomy, folder = found
    atlas = read_atlas(folder / "atlas")
    assert (anatomy.networks, anatomy.neurons) == (8, 64)
    assert set(anatomy.dense) == set(SKILLS)
    assert anatomy.carriers  # an untrained model has skills that one network hurts by chance
    told = read_effects(folder / "lesions" / "tell")
    for carrier in anatomy.carriers:
        members = atlas.neurons(carrier.networks, networks.THRESHOLD)
        assert carrier.neurons == sum(map(len, members.values()))
        assert carrier.share == pytest.approx(carrier.neurons / 64)
        effects = told["+".join(carrier.networks)]
        for skill, effect in carrier.effects.items():
            assert effect == effects[f"task/funcnet_demo_{skill}"]
            assert effect.value - effect.change == pytest.approx(anatomy.dense[skill])


def test_where_nothing_is_hurt_most_no_network_is_named(found, monkeypatch, tmp_path):
    _, folder = found
    monkeypatch.setattr(networks, "_chosen", lambda *arguments: {})
    for name, value in (("COMPONENTS", 4), ("CHOSEN_ON", 2), ("TOLD_ON", 3)):
        monkeypatch.setattr(networks, name, value)
    anatomy = find_networks(folder / "model", tmp_path)
    assert anatomy.carriers == () and set(anatomy.dense) == set(SKILLS)
    rows = (tmp_path / "lesions" / "tell" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 2  # the dense model and one lesion


def test_the_kept_networks_keep_what_was_asked_for(found):
    anatomy, _ = found
    dense = sum(anatomy.dense.values()) / len(anatomy.dense)
    assert anatomy.kept is None or anatomy.kept.mean.value >= 0.95 * dense
