"""What is saved is the model in memory, and what could not be saved is found before the work."""

import json
import shutil

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from funcnet_plugin.checkpoints.saved_config import settle
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.pruning import prune
from tests.conftest import make_tokenizer
from tests.hosting import logged, logits, recipe, run

MODIFIERS = {
    "WidthPruningModifier": {},
    "FunctionalNetworkModifier": {},
    "DepthPruningModifier": {},
    "HiddenSlicingModifier": {},
}


def recipe_of(name: str) -> str:
    if name in ("DepthPruningModifier", "HiddenSlicingModifier"):
        return f"t_stage:\n  p_modifiers:\n    {name}: {{pruning_ratio: 0.3}}\n"
    return recipe(name)


def change(path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


HABITS = [
    {"temperature": 0.9, "top_p": 0.6},
    {"do_sample": False, "typical_p": 0.3, "top_k": 7},
    {"num_beams": 1, "early_stopping": True, "length_penalty": 0.5},
    {"pad_token_id": -1},
    {"output_scores": True},
]


@pytest.mark.parametrize("habits", HABITS, ids=lambda h: next(iter(h)))
def test_a_generation_config_that_transformers_would_not_save_is_saved_as_it_came(
    checkpoint, texts, tmp_path, habits
):
    change(checkpoint / "generation_config.json", **habits)
    out = tmp_path / "out"
    with logged() as lines:
        prune(checkpoint, texts, out, recipe=recipe("WidthPruningModifier"), samples=8, window=32)
    assert sum("as it came in" in line for line in lines) == 1
    saved = json.loads((out / "generation_config.json").read_text())
    assert {key: saved.get(key) for key in habits} == habits
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("name", MODIFIERS)
def test_so_it_is_with_plain_oneshot_and_every_modifier(fresh, texts, tmp_path, name):
    model = fresh()
    model.generation_config.temperature = 0.9
    run(model, texts, recipe_of(name), output_dir=str(tmp_path / "out"))
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["temperature"] == 0.9 and model.generation_config.temperature == 0.9


def test_a_model_without_generation_config_gets_the_one_of_its_config(fresh, texts, tmp_path):
    model = fresh()
    model.generation_config = None
    run(model, texts, recipe("WidthPruningModifier"), output_dir=str(tmp_path / "out"))
    assert model.generation_config is None
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert saved.eos_token_id == model.config.eos_token_id


@pytest.mark.parametrize(
    "habits", [{"max_new_tokens": -1}, {"num_return_sequences": 3}, {"cache_implementation": "x"}]
)
def test_a_generation_config_that_cannot_be_loaded_is_refused(
    fresh, checkpoint, texts, tmp_path, habits
):
    change(checkpoint / "generation_config.json", **habits)
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be used"):
        prune(checkpoint, texts, tmp_path / "out", recipe=recipe("WidthPruningModifier"))
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be used"):
        run(str(checkpoint), texts, recipe("WidthPruningModifier"))
    model = fresh()
    for key, value in habits.items():
        setattr(model.generation_config, key, value)
    with pytest.raises(CheckpointError, match="its generation config cannot be used"):
        run(model, texts, recipe("WidthPruningModifier"))


@pytest.mark.parametrize("name", MODIFIERS)
def test_a_config_that_json_has_no_form_for_is_refused_before_calibration(fresh, texts, name):
    model = fresh()
    model.config.extra = torch.ones(2)
    before = logits(model)
    with pytest.raises(CheckpointError, match="config cannot be used, because of extra"):
        run(model, texts, recipe_of(name))
    assert torch.equal(logits(model), before)


def test_generation_settings_in_the_models_config_are_moved(fresh, texts, tmp_path):
    model = fresh()
    model.config.temperature = 0.7
    run(model, texts, recipe("WidthPruningModifier"), output_dir=str(tmp_path / "out"))
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["temperature"] == 0.7


def test_a_tokenizer_that_cannot_be_saved_is_refused_before_the_work(fresh, texts, tmp_path):
    class Broken(type(make_tokenizer())):
        def save_pretrained(self, *args, **kwargs):
            raise TypeError("no form for this")

    tokenizer = make_tokenizer()
    tokenizer.__class__ = Broken
    from llmcompressor import oneshot

    from tests.hosting import loader

    with pytest.raises(CheckpointError, match="its tokenizer cannot be used"):
        oneshot(
            model=fresh(), recipe=recipe("WidthPruningModifier"), dataset=loader(texts),
            tokenizer=tokenizer, output_dir=str(tmp_path / "out"),
        )  # fmt: skip


def test_oneshot_into_a_file_is_refused_before_the_work(fresh, texts, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        run(fresh(), texts, recipe("WidthPruningModifier"), output_dir=str(tmp_path / "out"))


def test_a_disk_without_room_is_refused_before_the_work(
    fresh, checkpoint, texts, tmp_path, monkeypatch
):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"the disk of .* has 0\.0 MB free"):
        prune(checkpoint, texts, tmp_path / "out", recipe=recipe("WidthPruningModifier"))
    with pytest.raises(CheckpointError, match="the disk of"):
        run(fresh(), texts, recipe("WidthPruningModifier"), output_dir=str(tmp_path / "o"))


def test_a_recipe_beside_the_model_that_cannot_be_read_is_refused(checkpoint, texts):
    (checkpoint / "recipe.yaml").write_text("a: [")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=r"recipe\.yaml"):
        run(model, texts, recipe("WidthPruningModifier"))


# -- config.json says what the model in memory says ------------------------------------------


def resized(model):
    model.resize_token_embeddings(36)


def other_rotary_base(model):
    model.config.rope_parameters = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
    rotary = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary(model.config)


def fewer_layers(model):
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2


def other_settings(model):
    model.config.max_position_embeddings = 256
    model.config.pad_token_id = None
    model.config.eos_token_id = [1, 2]
    model.config.mine = {"a": [1, None]}


def other_epsilon(model):
    model.config.rms_norm_eps = 0.1
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1


CHANGES = [resized, other_rotary_base, fewer_layers, other_settings, other_epsilon]


@pytest.mark.parametrize("changed", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_what_the_user_changed_in_memory_is_saved(fresh, texts, tmp_path, changed, allocation):
    model = fresh().eval()
    changed(model)
    pruned = run(
        model, texts, recipe("WidthPruningModifier", allocation=allocation),
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(again), logits(pruned))
    for key in ("vocab_size", "rope_parameters", "num_hidden_layers", "max_position_embeddings",
                "pad_token_id", "eos_token_id", "rms_norm_eps"):  # fmt: skip
        assert getattr(again.config, key) == getattr(pruned.config, key), key
    assert getattr(again.config, "mine", None) == getattr(pruned.config, "mine", None)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_rotary_base_that_came_too_late_is_said(fresh, texts, rebuilt):
    model = fresh()
    model.config.rope_parameters["rope_theta"] = 500.0
    if rebuilt:
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    with logged() as lines:
        run(model, texts, recipe("WidthPruningModifier"))
    assert any("other rotations" in line for line in lines) is not rebuilt


def test_a_key_under_its_older_name_does_not_come_back():
    config = transformers.GPT2Config(n_embd=32, n_layer=2)
    written = {"model_type": "gpt2", "hidden_size": 64, "n_layer": 2, "kept": "as it is"}
    settled = settle(written, config, {})
    assert settled["n_embd"] == 32 and "hidden_size" not in settled and "kept" not in settled


def test_a_file_that_agrees_stays_as_it_is():
    config = transformers.LlamaConfig(rope_theta=7.0, torch_dtype="bfloat16", mine=1)
    written = {"model_type": "llama", "rope_theta": 7.0, "torch_dtype": "bfloat16", "mine": 1,
               "quantization_config": {"theirs": 1}}  # fmt: skip
    assert settle(written, config, {}) == written


def test_a_removed_attribute_is_not_written_back():
    config = transformers.LlamaConfig()
    assert "mine" not in settle({"model_type": "llama", "mine": 1}, config, {})


def test_a_part_of_a_config_that_changed_is_written():
    config = transformers.Gemma3Config()
    written = json.loads(config.to_json_string())
    config.text_config.vocab_size = 77
    assert settle(written, config, {})["text_config"]["vocab_size"] == 77


def test_a_model_that_its_config_does_not_describe_is_refused(fresh, texts):
    model = fresh()
    model.model.layers = model.model.layers[:2]
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.2"):
        run(model, texts, recipe("WidthPruningModifier"))
    model = fresh()
    model.model.embed_tokens = torch.nn.Embedding(40, 24)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight is \(40, 24\)"):
        run(model, texts, recipe("WidthPruningModifier"))
