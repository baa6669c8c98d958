"""NaN and overflow, wherever they first appear: one sentence with layer and module."""

import copy
import tempfile

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind, hookimpl, manager
from funcnet_plugin.cut.surgery import cut_neurons
from funcnet_plugin.errors import CalibrationError, CheckpointError, NumbersError, RecipeError
from funcnet_plugin.measure.finite import check_finite_weights, is_finite
from funcnet_plugin.measure.gradients import loss_gradients
from funcnet_plugin.measure.streams import Streams
from funcnet_plugin.measure.vocabulary import strongest_answers
from funcnet_plugin.peers.depth import block_influence, perplexity_without
from funcnet_plugin.peers.slicing import fuse_norms, principal_axes
from funcnet_plugin.perplexity import perplexities
from funcnet_plugin.repair.fit import Examples, reconstruct
from funcnet_plugin.score.neurons import Scorer, union_of_ranks
from funcnet_plugin.text.own import inner_moments
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


@pytest.mark.parametrize("compensation", ["none", "least_squares", "reconstruction"])
@pytest.mark.parametrize("scorer", ["magnitude", "effect", "taylor", "surgeon", None])
def test_activations_that_overflow_are_named(texts, scorer, compensation):
    name = "WidthPruningModifier" if scorer else "FunctionalNetworkModifier"
    fields = {"compensation": compensation} | ({"scorer": scorer} if scorer else {})
    with pytest.raises(
        NumbersError, match=r"^layer 1: .*float16.*; .*bfloat16 or float32"
    ) as error:
        run(overflowing(), texts, recipe(name, **fields))
    assert "\n" not in str(error.value)


def test_the_module_is_named_by_what_overflows(texts):
    model = overflowing("model.layers.1.self_attn.v_proj")
    with pytest.raises(NumbersError, match=r"layer 1: the hidden states|the outputs of the up"):
        run(model, texts, recipe("WidthPruningModifier", scorer="effect"))
    batch = next(iter(loader(texts)))
    with pytest.raises(
        NumbersError, match=r"^layer 1: the output of model\.layers\.1\.self_attn\."
    ):
        loss_gradients(model, [batch], bind(model).blocks)


@pytest.mark.parametrize("fields", [{"own_text": 0.25}, {"continuations": 1}])
def test_text_of_its_own_that_cannot_be_drawn(texts, fields):
    if "continuations" in fields:
        fields |= {"repair": "reconstruction"}
    text = recipe("WidthPruningModifier", scorer="effect", **fields)
    with pytest.raises(NumbersError, match=r"^layer 1: .*up_proj|^layer 1: the hidden"):
        run(overflowing(), texts, text)
    with pytest.raises(NumbersError, match="text of the model's own cannot be had"):
        write(overflowing(), range(3, 32), begin=[[3]], window=8, seed=0)


def test_activations_in_own_text_are_named(texts):
    model = overflowing()
    with pytest.raises(NumbersError, match="layer 1: inputs of the down projection"):
        inner_moments(model, loader(texts, samples=2), bind(model).blocks)


def test_gradients_that_overflow_are_named(texts, monkeypatch):
    """The loss is finite here, and what comes back is not."""
    model = make_llama()
    blocks = bind(model).blocks
    blocks[1].down.register_full_backward_hook(lambda m, given, got: (given[0] * INF,))
    with pytest.raises(NumbersError, match=r"layer [01]: the loss's gradients by model\.layers"):
        loss_gradients(model, loader(texts, samples=2), blocks)


@pytest.mark.parametrize("measure", [block_influence, perplexity_without])
def test_layers_are_not_ordered_by_nan(texts, measure):
    model = overflowing()
    with pytest.raises(NumbersError, match=r"^layer 1: the output of model\.layers\.1\.mlp\."):
        measure(model, model.model.layers, loader(texts, samples=2))


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
        principal_axes(principal.half(), loader(texts, samples=2))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_token_that_nothing_uses_counts_where_all_tokens_are_asked(texts):
    model = overflowing("model.layers.0.mlp.up_proj")
    with pytest.raises(NumbersError, match=r"layer 0: token_share .* for tokens \[\d+"):
        strongest_answers(model, bind(model).blocks[0])
    text = recipe("WidthPruningModifier", scorer="effect", token_share=0.01)
    with pytest.raises(NumbersError, match=r"embed_tokens\.weight holds NaN .*\[31, 23\]"):
        run(spoilt("model.embed_tokens.weight"), texts, text)


def test_products_that_overflow_float32_are_named(texts):
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e20)
    text = recipe("WidthPruningModifier", scorer="magnitude", repair="least_squares")
    with pytest.raises(NumbersError, match="layer 1: the second moments inside"):
        run(model, texts, text)


def test_hidden_states_beside_each_other_are_looked_at(texts):
    model = overflowing()
    blocks = bind(model).blocks
    streams = Streams(model, blocks, loader(texts, samples=2))
    streams.pass_dense(blocks[0])
    with pytest.raises(NumbersError, match="layer 1: the dense model's hidden states"):
        streams.pass_dense(blocks[1])


def test_a_repair_that_its_dtype_cannot_hold_is_not_written():
    block = bind(make_llama().half()).blocks[2]
    keep = torch.arange(24)
    with pytest.raises(NumbersError, match=r"layer 2: the pruned and repaired weights .* float16"):
        cut_neurons(block, keep, torch.full((24, 24), 1e6))


def test_targets_that_are_not_finite_are_refused():
    block = bind(make_llama()).blocks[1]
    x = torch.randn(64, 24)
    target = torch.full((64, 24), INF)
    with pytest.raises(NumbersError, match=r"layer 1: what model\.layers\.1\.mlp should give"):
        reconstruct(block, [Examples(x, target, torch.arange(64), 1.0)], epochs=1, seed=0)


@pytest.fixture
def plugin():
    """Registers a scorer `mine` that gives what the function says."""
    plugins = manager.get_manager()

    def register(score):
        class Plugin:
            @staticmethod
            @hookimpl
            def funcnet_scorers():
                return [Scorer("mine", score)]

        plugins.register(Plugin, name="mine")

    yield register
    plugins.unregister(name="mine")


WRONG = {
    "NaN": (lambda e: torch.full((e.block.width,), NAN), NumbersError, r"48 of 48 .*\[0, 1, 2"),
    "infinite": (lambda e: torch.arange(48.0) / torch.arange(48.0), NumbersError, "1 of 48"),
    "too short": (lambda e: torch.ones(5), RecipeError, r"\(5,\) of float32"),
    "a column": (lambda e: torch.ones(48, 1), RecipeError, r"\(48, 1\) of"),
    "a mask": (lambda e: torch.ones(48, dtype=torch.bool), RecipeError, "of bool"),
    "complex": (lambda e: torch.ones(48, dtype=torch.cfloat), RecipeError, "of complex64"),
    "a list": (lambda e: [1.0] * 48, RecipeError, "list"),
    "nothing": (lambda e: None, RecipeError, "NoneType"),
}


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
@pytest.mark.parametrize("case", WRONG)
def test_what_a_scorer_gives_is_looked_at(fresh, texts, plugin, case, allocation):
    score, error, message = WRONG[case]
    plugin(score)
    text = recipe("WidthPruningModifier", scorer="mine", allocation=allocation)
    with pytest.raises(error, match=f"^layer 0: the scorer mine gave .*{message}"):
        run(fresh(), texts, text)
    union = recipe(union_with="mine", allocation=allocation)
    with pytest.raises(error, match=r"^layer 0: the scorer mine gave "):
        run(fresh(), texts, union)


def test_integers_and_half_precision_are_numbers(fresh, texts, plugin):
    plugin(lambda e: torch.arange(48).to(torch.int16 if e.block.index else torch.float16))
    model = run(fresh(), texts, recipe("WidthPruningModifier", scorer="mine"))
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("scorer", ["effect", "flap", "wanda_sp", "taylor", "obs", "surgeon",
                                    "loss_effect", "magnitude"])  # fmt: skip
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_a_dead_layer_is_said_to_have_no_order(texts, scorer, allocation):
    model = make_llama()
    with torch.no_grad():
        for module in bind(model).blocks[1].projections:
            module.weight.zero_()
    text = recipe(
        "WidthPruningModifier", scorer=scorer, allocation=allocation, repair="least_squares"
    )
    with logged() as lines:
        run(model, texts, text)
    said = [line for line in lines if "gives all" in line]
    assert len(said) == 1
    assert f"layer 1: the scorer {scorer} gives all 48 neurons the same score (0)" in said[0]
    assert "model.layers.1.mlp into the recipe's ignore" in said[0]


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_networks_of_a_dead_layer_are_refused_by_name(texts, strategy):
    model = make_llama()
    with torch.no_grad():
        for module in bind(model).blocks[1].projections:
            module.weight.zero_()
    with pytest.raises(CheckpointError, match=r"the MLP of layer 1 is dead.*ignore: \[model"):
        run(model, texts, recipe(strategy=strategy))
    ignored = recipe(strategy=strategy, ignore=["model.layers.1.mlp"], pruning_ratio=0.1)
    assert bind(run(model, texts, ignored)).widths[1] == 48


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_a_stability_that_no_network_reaches_is_refused_with_the_largest(fresh, texts, strategy):
    text = recipe(min_stability=0.9999, n_init=3, strategy=strategy)
    with pytest.raises(CalibrationError, match=r"min_stability=0\.9999 .*most stable: 0\.\d+\)"):
        run(fresh(), texts, text)
    run(fresh(), texts, recipe(min_stability=0.2, n_init=3, strategy=strategy))


def test_layers_that_are_all_alike_are_said_to_be(texts):
    model = make_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    with logged() as lines:
        run(model, texts, peer("DepthPruningModifier", score="perplexity", pruning_ratio=0.3))
    assert any("for every layer that may go" in line for line in lines)


def test_a_score_that_is_all_alike_has_no_say_in_a_union():
    other, alike = torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.ones(4)
    for scores in ([[other], [alike]], [[alike], [other]]):
        assert union_of_ranks(scores)[0].argsort().tolist() == [1, 2, 0, 3]
    assert union_of_ranks([[alike], [alike]])[0].tolist() == [0.0] * 4


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
    text = recipe("WidthPruningModifier", scorer="taylor", repair="reconstruction")
    assert torch.isfinite(logits(run(model, texts, text))).all()
