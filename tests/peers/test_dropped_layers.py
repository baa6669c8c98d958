"""Layers dropped from the middle, in every family: what is left computes what the dense model does
with these layers bypassed, in memory, saved and loaded, with a cache and without."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import read_block
from funcnet_plugin.errors import AdapterError
from funcnet_plugin.pruning import prune
from tests.conftest import make_tokenizer
from tests.families import FAMILIES
from tests.hosting import IDS, logits, run
from tests.peers.test_whole_model_peers import peer

pytestmark = pytest.mark.usefixtures("forget_the_session")

LAYERS = 6
TEXT = peer("DepthPruningModifier", pruning_ratio=0.25, skip_first=1, skip_last=1)
# The short windows make a difference at the 30 tokens of IDS.
SLIDING = {
    name: {"sliding_window": 8}
    for name in ("gemma2", "gemma3", "olmo3", "cohere2", "exaone4", "ministral", "mistral")
}
SLIDING["qwen2"] = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
SLIDING["qwen3"] = SLIDING["qwen2"]
SLIDING["smollm3"] = {"sliding_window": 8, "use_sliding_window": True}


def family(name, **more):
    one = FAMILIES[name]
    settings = one.settings | SLIDING.get(name, {}) | {"num_hidden_layers": LAYERS} | more
    return replace(one, settings=settings)


@contextmanager
def bypassed(model, dropped):
    def around(layer, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for i in dropped:
            layer = bind(model).blocks[i].decoder_layer
            handle = layer.register_forward_hook(around, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def save(one, path):
    model = one.build()
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_is_the_dense_model_with_the_others_bypassed(name, texts, tmp_path):
    model = save(family(name), tmp_path / "dense")
    model = run(model, texts, TEXT, output_dir=str(tmp_path / "out"))
    keep = read_block(tmp_path / "out")["kept_layers"]
    dropped = set(range(LAYERS)) - set(keep)
    assert dropped and 0 in keep and LAYERS - 1 in keep
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    whole = logits(dense)
    with bypassed(dense, dropped):
        expected = logits(dense)
    assert (expected - whole).abs().max() > 1e-3
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)
    for one in (model, again):
        with_cache, without = (
            one.generate(IDS[:1, :20], max_new_tokens=6, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
        assert torch.equal(with_cache, without)


@pytest.mark.parametrize("through", ["oneshot", "prune", "before the weights"])
def test_layers_whose_number_counts_are_refused_before_the_work(texts, tmp_path, through):
    one = family("gpt2", scale_attn_by_inverse_layer_idx=True)
    path = tmp_path / "dense"
    model = save(one, path)
    expected, reads = logits(model), []
    message = r"layers of GPT2LMHeadModel cannot be dropped: attn\.scaling of layer 1 depends"
    with pytest.raises(AdapterError, match=message) as error:
        if through == "oneshot":
            model.register_forward_pre_hook(lambda *_: reads.append(1))
            run(model, texts, TEXT)
        else:
            if through == "before the weights":
                (path / "model.safetensors").unlink()
            prune(path, texts, tmp_path / "out", recipe=TEXT, samples=4, window=20)
    assert "\n" not in str(error.value) and not reads and not (tmp_path / "out").exists()
    assert torch.equal(logits(model), expected)


def test_norms_of_a_failed_run_are_back_in_their_layers(texts, tmp_path):
    """Gemma's norms are others during a run; one that fails behind the drop puts them back."""
    model = save(family("gemma"), tmp_path / "dense")
    kinds = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    then = {"WidthPruningModifier": {"pruning_ratio": 0.9999, "align": 4}}
    with pytest.raises(Exception, match="pruning_ratio"):
        run(model, texts, peer("DepthPruningModifier", then, pruning_ratio=0.25))
    layers = model.model.layers
    assert len(layers) < LAYERS and "set_submodule" not in vars(model)
    assert {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__} == kinds
    assert torch.isfinite(logits(model)).all()
