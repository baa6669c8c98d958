"""Nothing is made up or dropped when a model is loaded; other classes and wrapped models are not
taken for language models."""

import json
import shutil
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.utils.prune import l1_unstructured
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, LlamaModel

from funcnet_plugin.checkpoints.loading import load_tokenizer
from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.compare.run import compare
from funcnet_plugin.errors import CalibrationError, CheckpointError
from funcnet_plugin.export import export_model
from funcnet_plugin.hosts.lm_eval import FuncnetLM
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.perplexity import perplexities
from funcnet_plugin.pruning import prune
from funcnet_plugin.text import own
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import logged, recipe, run

UP = "model.layers.1.mlp.up_proj.weight"


def tensors(checkpoint, change) -> None:
    """Write the weights again, changed."""
    path = checkpoint / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(name, weights):
    return {key: value for key, value in weights.items() if key != name}


def prefixed(weights):
    return {f"module.{key}": value for key, value in weights.items()}


def doors(checkpoint, texts, tmp_path):
    """Everything of ours that loads a checkpoint."""
    (tmp_path / "t.txt").write_text("\n".join(texts))
    text = str(tmp_path / "t.txt")
    plan = Comparison(str(checkpoint), {text: 1.0}, {"t": text}, ["effect"])
    tokens = {"t": torch.randint(3, 30, (1, 20))}
    return {
        "prune": lambda: prune(checkpoint, texts, tmp_path / "o", recipe=recipe()),
        "compare": lambda: compare(plan, tmp_path / "c"),
        "inspect": lambda: inspect_model(checkpoint),
        "lm_eval": lambda: FuncnetLM(pretrained=str(checkpoint)),
        "perplexity": lambda: perplexities(checkpoint, tokens),
        "export": lambda: export_model(checkpoint, tmp_path / "e", "padded"),
    }


def refused_everywhere(match, checkpoint, texts, tmp_path):
    for name, door in doors(checkpoint, texts, tmp_path).items():
        with pytest.raises(CheckpointError, match=match):
            door()
            pytest.fail(f"{name} took it")


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


# -- wrapped models ---------------------------------------------------------------------------


def lora(targets=("q_proj",)):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM")


def adapted(model):
    model.add_adapter(lora())
    return model


def adapted_mlp(model):
    model.add_adapter(lora(["gate_proj"]))
    return model


def peft_model(model):
    config = lora()
    import peft

    return peft.get_peft_model(model, config)


def injected(model):
    return peft_model(model).base_model.model


class OwnLowRank(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.lora_down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.lora_up = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_up(self.lora_down(x))


def own_low_rank(model):
    attention = model.model.layers[0].self_attn
    attention.q_proj = OwnLowRank(attention.q_proj)
    return model


def compiled_layer(model):
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


def parallel(model):
    return torch.nn.DataParallel(model)


def weight_norm(model):
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].self_attn.q_proj)
    return model


def older_pruning(model):
    l1_unstructured(model.model.layers[0].self_attn.q_proj, "weight", 0.5)
    return model


def with_a_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.ones(32))
    return model


WRAPPED = [adapted, adapted_mlp, peft_model, injected, own_low_rank, compiled, compiled_layer,
           parallel, weight_norm, older_pruning, with_a_bias]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPED, ids=lambda f: f.__name__)
def test_wrapped_models_are_refused_with_what_to_do(fresh, texts, tmp_path, wrap):
    model = wrap(fresh())
    mend = r"merge it|before torch\.compile|model inside it|plain one|take it out"
    with pytest.raises(CheckpointError, match=mend):
        run(model, texts, recipe("WidthPruningModifier"), output_dir=str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("alone", [False, True], ids=["beside", "alone"])
def test_adapter_files_are_refused(checkpoint, texts, tmp_path, alone):
    (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if alone:
        (checkpoint / "config.json").unlink()
    refused_everywhere("merge it into its base model", checkpoint, texts, tmp_path)


def test_a_merged_model_is_taken(fresh, texts, tmp_path):
    merged = peft_model(fresh()).merge_and_unload()
    run(merged, texts, recipe("WidthPruningModifier"), output_dir=str(tmp_path / "o"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "o")


# -- other people's code, other tokenizers ----------------------------------------------------


def no_prompt(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked at a prompt"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.signal.alarm", lambda *a: pytest.fail("asked")
    )


def test_code_of_a_checkpoint_is_refused_without_asking(checkpoint, texts, tmp_path, monkeypatch):
    no_prompt(monkeypatch)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "nobodys", "auto_map": {
        "AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "mine.py").write_text("raise SystemExit('ran')\n")
    refused_everywhere("code of its own", checkpoint, texts, tmp_path)


def test_code_of_a_tokenizer_is_refused_without_asking(checkpoint, monkeypatch):
    no_prompt(monkeypatch)
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}  # fmt: skip
    path.write_text(json.dumps(config))
    (checkpoint / "tokenizer.json").unlink()
    for load in (load_tokenizer, lambda path: FuncnetLM(str(path))):
        with pytest.raises(CheckpointError, match=r"the tokenizer of .* code of its own"):
            load(checkpoint)


def test_a_tokenizer_with_more_tokens_than_the_model_is_said_and_writes_none_of_them(
    checkpoint, texts, tmp_path, monkeypatch
):
    written = []

    def kept(*args, **options):
        written.extend(write(*args, **options))
        return written

    write = own.write
    monkeypatch.setattr(own, "write", kept)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<more{i}>" for i in range(400)])
    tokenizer.save_pretrained(checkpoint)
    with logged() as lines:
        prune(
            checkpoint, texts, tmp_path / "o", recipe=recipe("WidthPruningModifier", own_text=0.3),
            samples=8, window=32,
        )  # fmt: skip
    assert any("432 tokens and the model 32" in line for line in lines)
    assert written and max(map(max, written)) < 32


def test_lm_eval_names_a_token_that_the_model_has_not(checkpoint):
    model = FuncnetLM(str(checkpoint))
    with pytest.raises(CalibrationError, match="gives token 32 and the model has 32"):
        model._model_call(torch.tensor([[3, 32]]))
    with pytest.raises(CalibrationError, match="gives token 40 and the model has 32"):
        model._model_generate(torch.tensor([[40, 3]]), 8, ["."])


def test_test_text_with_tokens_that_the_model_has_not_is_refused(checkpoint):
    with pytest.raises(ValueError, match="token 32 and the model has 32"):
        perplexities(checkpoint, {"t": torch.full((1, 8), 32)})
