import importlib.metadata
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from funcnet_plugin.adapters import (
    MLPAdapter,
    bind,
    find_adapters,
    get_adapters,
    manager,
)
from funcnet_plugin.errors import AdapterError
from funcnet_plugin.plugins import hookimpl, hooks
from tests.conftest import make_llama
from tests.families import FAMILIES, WIDTH

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


@pytest.mark.parametrize("name", FAMILIES)
def test_built_in_adapters_fit_the_real_classes(name):
    layout = bind(FAMILIES[name].build())
    assert layout.adapter.name == name
    assert layout.widths == [WIDTH] * 3
    block = layout.blocks[0]
    parameters = sum(p.numel() for m in block.inputs for p in m.parameters())
    assert block.parameters_per_piece * WIDTH == parameters + block.down.weight.numel()


def test_an_unlisted_class_of_a_known_shape_is_recognised_with_a_warning():
    class HomegrownForCausalLM(LlamaForCausalLM):
        pass

    model = HomegrownForCausalLM(make_llama().config)
    with pytest.warns(UserWarning, match="no adapter names HomegrownForCausalLM; .* of llama"):
        layout = bind(model)
    assert layout.adapter.name == "like llama" and layout.adapter.bias_key is None
    model.config.intermediate_size = 47  # modules and config must say the same
    with pytest.raises(AdapterError, match="no adapter for the architecture"):
        bind(model)


def test_a_width_that_no_config_can_say_is_refused_with_the_reason():
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(AdapterError, match=r"BloomForCausalLM cannot be pruned: .* hidden size"):
        bind(model)


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


def use(fresh_manager, *adapters, name=None):
    class Plugin:
        @staticmethod
        @hookimpl
        def funcnet_adapters():
            return adapters

    fresh_manager.get_manager().register(Plugin, name=name)


def test_a_plugins_adapter_wins_over_the_built_in_one(fresh_manager):
    use(fresh_manager, MLPAdapter("mine", ("LlamaForCausalLM",)))
    assert get_adapters()["LlamaForCausalLM"].name == "mine"
    assert get_adapters()["MistralForCausalLM"].name == "mistral"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "model.blocks"}, "expects 'model.blocks' in LlamaForCausalLM"),
        ({"up": "w3"}, "expects 'w3' in model.layers.0.mlp, which holds gate_proj"),
        ({"down": "act_fn"}, "expects a torch.nn.Linear at model.layers.0.mlp.act_fn"),
        ({"down": "up_proj"}, "48, 48 rows where the 24 columns of up_proj"),
    ],
)
def test_an_adapter_that_does_not_fit_says_what_was_found(fresh_manager, change, message):
    use(fresh_manager, MLPAdapter("mine", ("LlamaForCausalLM",), **change))
    with pytest.raises(AdapterError, match=message):
        bind(make_llama())


def test_a_broken_plugin_is_skipped_by_name_and_the_others_stay(fresh_manager, monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "no.such.module", manager.ENTRY_POINT_GROUP)
    monkeypatch.setattr(hooks, "entry_points", lambda group: [broken])
    with pytest.warns(UserWarning, match=r"\(broken\), module no.such.module, is skipped"):
        assert "LlamaForCausalLM" in get_adapters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_adapters()  # said once


def test_a_plugin_that_gives_something_else_is_skipped_by_name(fresh_manager):
    use(fresh_manager, {"name": "llama"}, name="odd (layers)")
    with pytest.warns(UserWarning, match=r"odd \(layers\) is skipped: .*not an MLPAdapter"):
        assert get_adapters()["LlamaForCausalLM"].name == "llama"


def test_two_plugins_for_one_architecture_are_both_named(fresh_manager):
    use(fresh_manager, MLPAdapter("a", ("NewForCausalLM",)), name="first (a)")
    use(fresh_manager, MLPAdapter("b", ("NewForCausalLM", "OtherForCausalLM")), name="second (b)")
    with pytest.warns(UserWarning, match=r"second \(b\) and first \(a\) both .* NewForCausalLM"):
        assert get_adapters()["NewForCausalLM"].name == "b"


def test_adapters_are_listed_with_their_source(fresh_manager):
    use(fresh_manager, MLPAdapter("mine", ("Qwen2ForCausalLM",)), name="my-package (mine)")
    rows = {f.adapter.name: f for f in find_adapters()}
    assert rows["mine"].source == "my-package (mine)"
    assert rows["mistral"].source == "funcnet_plugin"
    assert "qwen2" not in rows  # nothing is left for it
