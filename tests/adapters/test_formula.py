"""An MLP must compute what its adapter says: look-alikes are refused by name, before anything."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, Phi3Config
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM, Phi3MLP

from funcnet_plugin.adapters import MLPAdapter, bind, layout
from funcnet_plugin.errors import AdapterError
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.pruning import prune
from tests.adapters.test_adapters import TINY, fresh_manager, use  # noqa: F401
from tests.conftest import make_llama, make_tokenizer
from tests.families import FAMILIES
from tests.hosting import recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


class Normed(LlamaMLP):
    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.RMSNorm(config.intermediate_size)

    def forward(self, x):
        return self.down_proj(self.norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


class Limited(LlamaMLP):
    def forward(self, x):
        gate = self.gate_proj(x).clamp(max=7.0)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x).clamp(-7.0, 7.0))


class Swapped(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class Scaled(LlamaMLP):
    def forward(self, x):
        return super().forward(x) * 0.5


class Residual(LlamaMLP):
    def forward(self, x):
        return x + super().forward(x)


class Weighed(LlamaMLP):
    """Computes the same as long as the scales are 1, and a cut would leave them as they are."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(config.intermediate_size))

    def forward(self, x):
        return self.down_proj(self.scale * self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Shifted(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1))


LOOK_ALIKES = [Normed, Limited, Swapped, Scaled, Residual, Shifted, Weighed]


def with_mlp(cls, device="cpu", layers=(0, 1, 2)):
    with torch.device(device):
        model = make_llama()
        for i in layers:
            model.model.layers[i].mlp = cls(model.config)
    return model


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("cls", LOOK_ALIKES)
def test_a_look_alike_is_refused_by_name(cls, device):
    message = r"LlamaForCausalLM cannot be pruned: model\.layers\.0\.mlp has the modules of adapter"
    with pytest.raises(AdapterError, match=message) as error:
        bind(with_mlp(cls, device))
    assert "\n" not in str(error.value)


def test_a_look_alike_in_one_layer_is_found():
    with pytest.raises(AdapterError, match=r"model\.layers\.2\.mlp"):
        bind(with_mlp(Normed, layers=(2,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_its_adapters_formula(name, dtype):
    assert bind(FAMILIES[name].build(dtype).train()).adapter.name == name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_does_without_weights(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(FAMILIES[name].build().config)
    assert bind(model).adapter.name == name


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_halves_in_the_other_order_and_interleaved_are_refused(device):
    class UpFirst(Phi3MLP):
        def forward(self, x):
            up, gate = self.gate_up_proj(x).chunk(2, dim=-1)
            return self.down_proj(up * self.activation_fn(gate))

    class Interleaved(Phi3MLP):
        def forward(self, x):
            both = self.gate_up_proj(x)
            return self.down_proj(both[..., 1::2] * self.activation_fn(both[..., ::2]))

    for cls in (UpFirst, Interleaved):
        with torch.device(device):
            model = Phi3ForCausalLM(Phi3Config(**TINY))
            model.model.layers[0].mlp = cls(model.config)
        with pytest.raises(AdapterError, match="Phi3ForCausalLM cannot be pruned"):
            bind(model)


def test_an_mlp_that_is_the_layer_itself_is_tried_too():
    model = FAMILIES["opt"].build()
    assert bind(model).adapter.name == "opt"
    other = FAMILIES["opt"].build()
    layer = other.model.decoder.layers[0]
    layer.fc2.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    with pytest.raises(AdapterError, match=r"what enters fc2 is another"):
        bind(other)


def test_adapters_of_others_are_held_to_their_formula(fresh_manager):  # noqa: F811
    use(fresh_manager, MLPAdapter("mine", ("LlamaForCausalLM",), gate="up_proj", up="gate_proj"))
    with pytest.raises(AdapterError, match=r"modules of adapter 'mine' .*act\(up_proj\(x\)\)"):
        bind(make_llama())


@pytest.mark.filterwarnings("ignore:no adapter names")  # where the MLPs are not tried yet
def test_bitnet_is_refused_everywhere_before_the_work(texts, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "bitnet"
    model = BitNetForCausalLM(BitNetConfig(**TINY))
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    text = recipe("WidthPruningModifier", scorer="effect", pruning_ratio=0.1)
    for act in (
        lambda: bind(model),
        lambda: inspect_model(path),
        lambda: run(str(path), texts, text),
        lambda: prune(path, texts, tmp_path / "out", recipe=text, samples=4, window=20),
    ):
        with pytest.raises(AdapterError, match="BitNetForCausalLM cannot be pruned"):
            act()
    assert not (tmp_path / "out").exists()


def test_trying_is_done_once_and_leaves_nothing_behind(monkeypatch):
    model, calls = make_llama().train(), []
    model.model.layers[0].mlp.eval()
    departure = layout.departure
    monkeypatch.setattr(layout, "departure", lambda *a: calls.append(1) or departure(*a))
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for _ in range(3):
        bind(model)
    assert calls == [1] and modes == [module.training for module in model.modules()]
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())
