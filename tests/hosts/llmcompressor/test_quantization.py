"""Pruning and other compression modifiers of llm-compressor in one recipe."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.hosts.llmcompressor.checks import refuse_quantized
from tests.hosting import FIELDS, IDS, logits, networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")

HEAD = {"ignore": ["lm_head"]}
FP8 = {"QuantizationModifier": {"targets": "Linear", "scheme": "FP8_DYNAMIC"} | HEAD}
W8A8 = {"GPTQModifier": {"targets": "Linear", "scheme": "W8A8"} | HEAD}


def w4a16(group_size: int = 8, **fields) -> dict:
    """W4A16 in groups that fit the small models of these tests."""
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": group_size,
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"GPTQModifier": {"config_groups": groups} | HEAD | fields}


@pytest.mark.parametrize("then", [FP8, W8A8, w4a16()], ids=["fp8", "w8a8", "w4a16"])
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_quantization_after_pruning_is_that_of_the_pruned_model(
    checkpoint, texts, tmp_path, then, allocation
):
    """One recipe gives the same checkpoint as pruning, saving, reloading and quantizing."""
    fields = {"align": 8, "allocation": allocation, "scorer": [networks(), "effect"]}
    fields["pruning_ratio"] = 0.15  # four or five groups of 8 neurons: not alike in three layers
    together = run(
        str(checkpoint), texts, recipe(then=then, **fields), output_dir=str(tmp_path / "together")
    )
    run(str(checkpoint), texts, recipe(**fields), output_dir=str(tmp_path / "pruned"))
    alone = yaml.safe_dump({"t_stage": {"q_modifiers": then}})
    run(str(tmp_path / "pruned"), texts, alone, output_dir=str(tmp_path / "apart"))
    reloaded, apart = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("together", "apart")
    )
    widths = bind(together).widths
    assert bind(reloaded).widths == bind(apart).widths == widths
    assert max(widths) <= 48 and sum(widths) < 3 * 48
    assert (len(set(widths)) > 1) == (allocation == "threshold")
    assert torch.equal(logits(reloaded), logits(apart))
    pruned, quantized = (
        json.loads((tmp_path / name / "config.json").read_text())["functional_network"]
        for name in ("pruned", "together")
    )
    for key in ("parameters_before", "parameters_after", "pruning_ratio_reached"):
        assert quantized[key] == pruned[key], f"{key} counts what quantization added"
    # In memory the weights are dequantized on the fly, on disk they are packed.
    torch.testing.assert_close(logits(together), logits(reloaded), atol=1e-5, rtol=1e-5)
    for name, module in together.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            assert module.quantization_scheme is not None, name
            assert module.weight_scale.shape[0] == module.out_features, name


@pytest.mark.parametrize(
    "then",
    [
        {"SparseGPTModifier": {"sparsity": 0.5, "mask_structure": "0:0"}},
        {"WandaPruningModifier": {"sparsity": 0.5, "mask_structure": "0:0"}},
    ],
    ids=["sparsegpt", "wanda"],
)
def test_sparsity_after_pruning(checkpoint, texts, tmp_path, then):
    out = tmp_path / "out"
    model = run(str(checkpoint), texts, recipe(then=then), output_dir=str(out))
    width = model.config.intermediate_size
    assert width < 48
    for layer in model.model.layers:
        weight = layer.mlp.down_proj.weight
        assert weight.shape == (24, width)
        assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(model))


def test_smoothquant_before_pruning(checkpoint, texts, tmp_path):
    smooth = {
        "SmoothQuantModifier": {
            "smoothing_strength": 0.8,
            "mappings": [
                [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"],
                [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
            ],
        }
    }
    pruning = {"FunctionalNetworkModifier": FIELDS | {"scorer": networks()}}
    text = yaml.safe_dump(
        {"t_stage": {"s_modifiers": smooth, "p_modifiers": pruning, "q_modifiers": W8A8}},
        sort_keys=False,
    )
    model = run(str(checkpoint), texts, text, output_dir=str(tmp_path / "out"))
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    before = plain.model.layers[0].post_attention_layernorm.weight
    assert not torch.allclose(model.model.layers[0].post_attention_layernorm.weight, before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.intermediate_size < 48
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)


def test_quantization_before_pruning_is_refused(fresh, texts):
    pruning = {"FunctionalNetworkModifier": FIELDS | {"scorer": networks()}}
    stage = {"q_modifiers": FP8, "p_modifiers": pruning}
    text = yaml.safe_dump({"t_stage": stage}, sort_keys=False)
    with pytest.raises(FuncnetError, match="put pruning first"):
        run(fresh(), texts, text)


@pytest.mark.parametrize("pipeline", ["sequential", "basic"])
def test_joint_pipelines_are_refused(fresh, texts, pipeline):
    model = fresh()
    with pytest.raises(FuncnetError, match="pipeline='independent'"):
        run(model, texts, recipe(then=W8A8), pipeline=pipeline)
    assert model.config.intermediate_size == 48


TO_28 = {"pruning_ratio": 0.42, "ratio_scope": "mlp"}
INDIVISIBLE = {
    # 0.42 of the MLPs leaves 28 of 48 neurons at align 4
    "kept width": (
        recipe(then=w4a16(), **TO_28), "width 28 that pruning may leave .*work: 24 and 32.*align: 8"
    ),
    "any width below one cut": (
        recipe(then=w4a16(), allocation="threshold"),
        "width 4 that pruning may leave .*work: 8",
    ),
    "original width": (
        recipe(then=w4a16(32)), "down_proj is 48 wide then; set bypass_divisibility_checks: true"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INDIVISIBLE)
def test_groups_that_do_not_fit_are_refused_before_calibration(fresh, texts, case):
    text, message = INDIVISIBLE[case]
    model = fresh()
    with pytest.raises(FuncnetError, match=message) as error:
        run(model, texts, text)
    assert "\n" not in str(error.value) and model.config.intermediate_size == 48


def test_a_group_that_is_ignored_may_not_fit(fresh, texts):
    then = w4a16()
    then["GPTQModifier"]["ignore"] = ["lm_head", "re:.*down_proj"]
    assert run(fresh(), texts, recipe(then=then, **TO_28)).config.intermediate_size == 28


def test_an_already_quantized_checkpoint_is_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(FuncnetError, match="already quantized"):
        refuse_quantized(model)


def test_pruning_and_quantizing_the_same_model_in_two_runs(checkpoint, texts, tmp_path):
    """Both save: what the second saves must load, whatever hooks the first left behind."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    run(model, texts, recipe(align=8), output_dir=str(tmp_path / "pruned"))
    run(model, texts, yaml.safe_dump({"t_stage": {"q_modifiers": w4a16()}}),
        output_dir=str(tmp_path / "both"))  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    assert again.config.functional_network["kept_widths"] == bind(again).widths
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, logits(model), atol=1e-5, rtol=1e-5)
