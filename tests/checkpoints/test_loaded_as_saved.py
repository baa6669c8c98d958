"""Nothing is made up or dropped when a model is loaded; other classes are not taken for language
models."""

import json
import shutil
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, LlamaModel

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.inspection import inspect_model
from tests.checkpoints.doors import refused_everywhere
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import recipe, run

UP = "model.layers.1.mlp.up_proj.weight"


def tensors(checkpoint, change) -> None:
    """Write the weights again, changed."""
    path = checkpoint / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(name, weights):
    return {key: value for key, value in weights.items() if key != name}


def prefixed(weights):
    return {f"module.{key}": value for key, value in weights.items()}


@pytest.mark.parametrize("change", [partial(without, UP), prefixed], ids=["one", "all"])
def test_missing_weights_are_refused_by_name(checkpoint, texts, tmp_path, change):
    tensors(checkpoint, change)
    refused_everywhere("lacks .* weights .*made up", checkpoint, texts, tmp_path)


def test_oneshot_of_a_directory_that_lacks_weights_is_refused(checkpoint, texts):
    tensors(checkpoint, partial(without, UP))
    with pytest.raises(CheckpointError, match=UP):
        run(str(checkpoint), texts, recipe("WidthPruningModifier"))


def narrower(weights):
    return weights | {UP: weights[UP][:-8].clone()}


def adapter_alone(directory):
    (directory / "config.json").unlink()
    (directory / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda d: tensors(d, narrower), "config and weights disagree"),
        (lambda d: (d / "model.safetensors").write_bytes(b"xx"), "cannot be read"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
        (adapter_alone, "holds an adapter"),
    ],
    ids=["shape", "damaged", "none", "adapter"],
)
def test_oneshot_of_a_directory_that_cannot_be_loaded_says_why(checkpoint, texts, spoil, match):
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=match):
        run(str(checkpoint), texts, recipe("WidthPruningModifier"))


@pytest.mark.parametrize("how", ["never saved", "deleted"])
def test_a_model_of_nowhere_is_refused_with_what_to_do(checkpoint, texts, how):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    shutil.rmtree(checkpoint)
    if how == "never saved":
        model = make_llama()
    with pytest.raises(CheckpointError, match="save model and tokenizer into a directory"):
        run(model, texts, recipe("WidthPruningModifier"))


def test_a_model_that_the_user_completed_is_taken(checkpoint, texts):
    tensors(checkpoint, partial(without, UP))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.load_state_dict(make_llama().state_dict())
    run(model, texts, recipe("WidthPruningModifier"))
    assert model.config.intermediate_size < 48


def test_pickled_and_sharded_weights_are_looked_into_too(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    inspect_model(checkpoint)
    torch.save(without(UP, weights), checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=UP):
        inspect_model(checkpoint)
    (checkpoint / "pytorch_model.bin").unlink()
    index = {"weight_map": dict.fromkeys(weights, "a.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names a\.safetensors"):
        inspect_model(checkpoint)
    save_file(without(UP, weights), checkpoint / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=UP):
        inspect_model(checkpoint)
    save_file(weights, checkpoint / "a.safetensors", metadata={"format": "pt"})
    inspect_model(checkpoint)


def test_dropped_weights_that_matter_are_refused_and_others_not(checkpoint):
    def adding(name, value, weights):
        return weights | {name: value}

    def add(name, value):
        tensors(checkpoint, partial(adding, name, value))

    add("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(3))
    add("model.layers.0.mlp.up_proj.bias", torch.zeros(48))
    add("v_head.summary.weight", torch.ones(3))
    inspect_model(checkpoint)
    add("model.layers.0.mlp.up_proj.bias", torch.ones(48))
    with pytest.raises(CheckpointError, match=r"no place .*layers\.0\.mlp\.up_proj\.bias"):
        inspect_model(checkpoint)


def test_more_layers_than_the_config_says_are_not_dropped(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match=r"no place .*model\.layers\.2"):
        inspect_model(checkpoint)


def test_a_tied_head_may_be_absent_and_a_directory_may_hold_no_weights_to_inspect(tmp_path):
    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    inspect_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    inspect_model(tmp_path)


OTHERS = {
    "classifier": lambda: LlamaForSequenceClassification(make_llama().config),
    "base": lambda: LlamaModel(make_llama().config),
    "tied base": lambda: LlamaModel(make_llama(tie_word_embeddings=True).config),
    "tokens": lambda: transformers.LlamaForTokenClassification(make_llama().config),
    "masked": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=32,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
        )
    ),
    "encoder and decoder": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=32, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_checkpoints_of_other_classes_are_refused(texts, tmp_path, kind):
    OTHERS[kind]().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    refused_everywhere("no causal language model", tmp_path / "model", texts, tmp_path)


@pytest.mark.parametrize("kind", ["classifier", "base"])
def test_objects_of_other_classes_are_refused(texts, checkpoint, kind):
    model = type(OTHERS[kind]()).from_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match="no causal language model"):
        run(model, texts, recipe("WidthPruningModifier"))
