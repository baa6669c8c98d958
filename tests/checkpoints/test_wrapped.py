"""Models that something is wrapped around are refused by name, merged ones are taken."""

import pytest
import torch
from torch.nn.utils.prune import l1_unstructured
from transformers import AutoModelForCausalLM

from funcnet_plugin.errors import CheckpointError
from tests.checkpoints.doors import refused_everywhere
from tests.hosting import recipe, run


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
