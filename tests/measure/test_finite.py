"""NaN and overflow, wherever they first appear: one sentence with layer and module."""

import copy
import tempfile

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import NumbersError
from funcnet_plugin.evaluation.perplexity import perplexities
from funcnet_plugin.measure.dense_moments import moments_of
from funcnet_plugin.measure.finite import check_finite_weights, is_finite
from funcnet_plugin.measure.gradients import output_gradients, weight_gradients
from funcnet_plugin.measure.text import Text
from funcnet_plugin.peers.depth import block_influence, perplexity_without
from funcnet_plugin.peers.slicing import fuse_norms, principal_axes
from funcnet_plugin.text.writing import write
from tests.conftest import make_llama
from tests.hosting import loader, logged, logits, offload_layers, recipe
from tests.hosting import run as run_it
from tests.peers.test_whole_model_peers import peer

pytestmark = pytest.mark.usefixtures("forget_the_session")
NAN, INF = float("nan"), float("inf")
MODIFIERS = {
    "WidthPruningModifier": recipe("WidthPruningModifier", scorer="magnitude"),
    "FunctionalNetworkModifier": recipe(),
    "DepthPruningModifier": peer("DepthPruningModifier"),
    "HiddenSlicingModifier": peer("HiddenSlicingModifier", multiple_of=2),
}
WEIGHTS = [
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def run(model, texts, text):
    """From a directory, in its own dtype: llm-compressor reads the config there."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return run_it(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), texts, text)


def text_of(texts, samples=2):
    return Text.read(loader(texts, samples=samples))


def spoilt(name, value=NAN, **changes):
    model = make_llama(**changes)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    return model


def overflowing(path="model.layers.1.mlp.up_proj", **changes):
    """Sound float16 weights whose products are beyond float16."""
    model = make_llama(**changes)
    with torch.no_grad():
        model.get_submodule(path).weight.mul_(3e4)
    return model.half()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("modifier", MODIFIERS)
def test_a_weight_that_is_not_finite_is_named_before_the_work(texts, modifier, name):
    layer = "layer 1: " if ".layers.1." in name else ""
    with pytest.raises(NumbersError, match=f"^{layer}the weight {name} holds NaN .1 of"):
        run(spoilt(name), texts, MODIFIERS[modifier])


def test_weights_that_float16_cannot_hold_are_called_so():
    model = make_llama().half()
    model.model.layers[2].mlp.gate_proj.weight.data[0, 0] = INF
    with pytest.raises(NumbersError, match=r"infinite values .*\[0, 0\]\) in float16; .* bfloat16"):
        check_finite_weights(model)


def test_weights_elsewhere_are_looked_at_where_they_are(tmp_path):
    model = spoilt(WEIGHTS[3])
    offload_layers(model, "disk", offload_dir=str(tmp_path))
    with pytest.raises(NumbersError, match=WEIGHTS[3]):
        check_finite_weights(model)
    check_finite_weights(make_llama().to("meta"))
    check_finite_weights(make_llama())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_finite(dtype):
    x = torch.zeros(3, 4, dtype=dtype)
    x[1, 2] = torch.finfo(dtype).max
    assert is_finite(x) and is_finite(x[:0]) and is_finite(x.to("meta")) and is_finite(x.int())
    for value in (NAN, INF, -INF):
        x[0, 3] = value
        assert not is_finite(x) and not is_finite(x.T)
    assert is_finite(torch.zeros(2).to(torch.float8_e4m3fn))


@pytest.mark.parametrize("repair", ["none", "least_squares"])
@pytest.mark.parametrize("scorer", ["magnitude", "effect", "taylor", "surgeon", None])
def test_activations_that_overflow_are_named(texts, scorer, repair):
    name = "WidthPruningModifier" if scorer else "FunctionalNetworkModifier"
    fields = {"repair": repair} | ({"scorer": scorer} if scorer else {})
    with pytest.raises(
        NumbersError, match=r"^layer 1: .*float16.*; .*bfloat16 or float32"
    ) as error:
        run(overflowing(), texts, recipe(name, **fields))
    assert "\n" not in str(error.value)


def test_predictions_of_a_model_that_overflows_are_refused(texts):
    text = recipe("WidthPruningModifier", scorer="effect", repair="distillation")
    message = "^the hidden states that enter the dense model's head hold .* in float16; "
    with pytest.raises(NumbersError, match=message):
        run(overflowing(), texts, text)


def test_the_module_is_named_by_what_overflows(texts):
    model = overflowing("model.layers.1.self_attn.v_proj")
    with pytest.raises(NumbersError, match=r"layer 1: the hidden states|the outputs of the up"):
        run(model, texts, recipe("WidthPruningModifier", scorer="effect"))
    message = r"^layer 1: the output of model\.layers\.1\.self_attn\."
    with pytest.raises(NumbersError, match=message):
        weight_gradients(model, text_of(texts), bind(model).blocks)
    with pytest.raises(NumbersError, match=message):
        output_gradients(model, text_of(texts), bind(model).blocks, seed=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"own_text": 0.25, "repair": "least_squares"},
        {"repair": {"name": "distillation", "continuations": 1}},
    ],
)
def test_text_of_its_own_that_cannot_be_drawn(texts, fields):
    text = recipe("WidthPruningModifier", scorer="effect", **fields)
    with pytest.raises(NumbersError, match=r"^layer 1: .*up_proj|^layer 1: the hidden"):
        run(overflowing(), texts, text)
    with pytest.raises(NumbersError, match="text of the model's own cannot be had"):
        write(overflowing(), range(3, 32), begin=[[3]], window=8, seed=0)


def test_activations_in_own_text_are_named(texts):
    model = overflowing()
    with pytest.raises(NumbersError, match=r"layer 1: inputs of model.layers.1.mlp.down_proj"):
        moments_of(model, bind(model).blocks, text_of(texts), bind(model).blocks)


def test_gradients_that_overflow_are_named(texts, monkeypatch):
    """The loss is finite here, and what comes back is not."""
    model = make_llama()
    blocks = bind(model).blocks
    blocks[1].down.register_full_backward_hook(lambda m, given, got: (given[0] * INF,))
    message = r"layer [01]: the loss's gradients by model\.layers"
    with pytest.raises(NumbersError, match=message):
        weight_gradients(model, text_of(texts), blocks)
    with pytest.raises(NumbersError, match=message):
        output_gradients(model, text_of(texts), blocks, seed=0)


@pytest.mark.parametrize("measure", [block_influence, perplexity_without])
def test_layers_are_not_ordered_by_nan(texts, measure):
    model = overflowing()
    with pytest.raises(NumbersError, match=r"^layer 1: the output of model\.layers\.1\.mlp\."):
        measure(model, model.model.layers, text_of(texts))


@pytest.mark.parametrize("score", ["block_influence", "perplexity"])
def test_whole_models_that_overflow_are_left_as_they_are(texts, tmp_path, score):
    overflowing().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NumbersError, match=r"^layer 1: "):
        run_it(model, texts, peer("DepthPruningModifier", score=score))
    with pytest.raises(NumbersError, match=r"^layer 1: "):
        principal = make_llama()
        fuse_norms(principal)
        with torch.no_grad():
            principal.model.layers[1].mlp.up_proj.weight.mul_(3e4)
        principal_axes(principal.half(), text_of(texts))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_products_that_overflow_float32_are_named(texts):
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e20)
    text = recipe("WidthPruningModifier", scorer="magnitude", repair="least_squares")
    with pytest.raises(NumbersError, match="layer 1: the second moments inside"):
        run(model, texts, text)


def test_a_repair_that_its_dtype_cannot_hold_is_not_written():
    block = bind(make_llama().half()).blocks[2]
    keep = torch.arange(24)
    with pytest.raises(NumbersError, match=r"layer 2: the pruned and repaired weights .* float16"):
        cut(block, keep, torch.full((24, 24), 1e6))


def test_layers_that_are_all_alike_are_said_to_be(texts):
    model = make_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    with logged() as lines:
        run(model, texts, peer("DepthPruningModifier", score="perplexity", pruning_ratio=0.3))
    assert any("for every layer that may go" in line for line in lines)


def test_perplexity_is_a_number_or_refused(tmp_path):
    windows = {"text": torch.randint(3, 32, (2, 20))}
    spoilt("model.norm.weight").save_pretrained(tmp_path / "nan")
    with pytest.raises(NumbersError, match="predicts NaN on the text text"):
        perplexities(tmp_path / "nan", windows)
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    model.save_pretrained(tmp_path / "bad")
    assert 1e300 < perplexities(tmp_path / "bad", windows).by_text["text"] < INF


def test_a_sound_float16_model_is_pruned(texts, tmp_path):
    make_llama().half().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    text = recipe("WidthPruningModifier", scorer="taylor", repair="distillation")
    assert torch.isfinite(logits(run(model, texts, text))).all()
