import importlib.metadata
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from funcnet_plugin.adapters import MLPAdapter, bind, builtin, get_adapters, hookimpl, manager
from funcnet_plugin.errors import AdapterError
from tests.conftest import make_llama

TINY = {
    "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def fresh_manager():
    """A plugin manager of its own, forgotten afterwards."""
    manager.get_manager.cache_clear()
    yield manager
    manager.get_manager.cache_clear()


@pytest.mark.parametrize("model_type", [adapter.name for adapter in builtin.ADAPTERS])
def test_built_in_adapters_fit_the_real_classes(model_type):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TINY))
    layout = bind(model)
    assert layout.adapter.name == model_type
    assert layout.widths == [40, 40]
    block = layout.blocks[0]
    assert block.parameters_per_neuron * 40 == sum(
        p.numel() for linear in (block.gate, block.up) for p in linear.parameters()
    ) + block.down.weight.numel()  # fmt: skip


def test_an_unknown_architecture_is_named_with_the_known_ones_and_the_way_to_add_one():
    class HomegrownForCausalLM(torch.nn.Module):
        pass

    with pytest.raises(AdapterError) as error:
        bind(HomegrownForCausalLM())
    for part in (
        "HomegrownForCausalLM",
        "LlamaForCausalLM",
        "funcnet_adapters",
        "funcnet_plugin.adapters",
    ):
        assert part in str(error.value)


def test_experts_are_refused_by_name():
    settings = TINY | {"num_local_experts": 2, "num_experts_per_tok": 1}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **settings))
    with pytest.raises(AdapterError, match="MixtralForCausalLM is a mixture of experts"):
        bind(model)


def use(fresh_manager, monkeypatch, adapter):
    class Plugin:
        @staticmethod
        @hookimpl
        def funcnet_adapters():
            return [adapter]

    fresh_manager.get_manager().register(Plugin)


def test_a_plugins_adapter_wins_over_the_built_in_one(fresh_manager, monkeypatch):
    use(fresh_manager, monkeypatch, MLPAdapter("mine", ("LlamaForCausalLM",)))
    assert get_adapters()["LlamaForCausalLM"].name == "mine"
    assert get_adapters()["MistralForCausalLM"].name == "mistral"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "model.blocks"}, "expects 'model.blocks' in LlamaForCausalLM"),
        ({"up": "w3"}, "expects 'w3' in model.layers.0.mlp, which holds gate_proj"),
        ({"down": "act_fn"}, "expects a torch.nn.Linear at model.layers.0.mlp.act_fn"),
        ({"down": "up_proj"}, "disagree about the width: 48, 48 and 24"),
    ],
)
def test_an_adapter_that_does_not_fit_says_what_was_found(
    fresh_manager, monkeypatch, change, message
):
    use(fresh_manager, monkeypatch, MLPAdapter("mine", ("LlamaForCausalLM",), **change))
    with pytest.raises(AdapterError, match=message):
        bind(make_llama())


def test_a_broken_plugin_is_skipped_by_name_and_the_others_stay(fresh_manager, monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "no.such.module", manager.ENTRY_POINT_GROUP)
    monkeypatch.setattr(manager, "entry_points", lambda group: [broken])
    with pytest.warns(UserWarning, match="'broken'.*no.such.module.*is skipped"):
        assert "LlamaForCausalLM" in get_adapters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_adapters()  # said once
