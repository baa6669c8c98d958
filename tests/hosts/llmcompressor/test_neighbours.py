"""Every modifier of a recipe is checked against the cut, before calibration and before loading."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from funcnet_plugin.errors import FuncnetError, RecipeError
from funcnet_plugin.hosts.llmcompressor.neighbours import _rotatable
from funcnet_plugin.pruning import prune
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import logits, run

pytestmark = pytest.mark.usefixtures("forget_the_session")

WIDTH = 128
HEAD = {"ignore": ["lm_head"]}


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense"
    make_llama(intermediate_size=WIDTH, hidden_size=64).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def spin(*rotations, **fields):
    fields = {"transform_type": "hadamard"} | fields
    return {"SpinQuantModifier": {"rotations": list(rotations)} | fields}


def quip(*rotations, **fields):
    fields = {"transform_type": "random-hadamard", "targets": "Linear"} | HEAD | fields
    return {"QuIPModifier": {"rotations": list(rotations)} | fields}


def quantized(*, weights=None, bypass=False, modifier="QuantizationModifier", **more):
    weights = weights or {"strategy": "channel"}
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"} | weights} | more
    fields = {"config_groups": {"g": group}} | HEAD
    return {modifier: fields | ({"bypass_divisibility_checks": True} if bypass else {})}


def blocks(rows, columns, **more):
    weights = {"strategy": "block", "block_structure": [rows, columns]}
    return quantized(weights=weights, **more)


def activations(where, size):
    return quantized(**{where: {
        "num_bits": 8, "type": "float", "strategy": "group", "group_size": size, "dynamic": True,
    }})  # fmt: skip


def sparse(modifier="SparseGPTModifier", **fields):
    fields = {"sparsity": 0.5, "mask_structure": "2:4", "targets": ["Linear"]} | HEAD | fields
    return {modifier: fields}


def text(before=None, then=None, ratio=0.25, **fields):
    pruning = {"pruning_ratio": ratio, "ratio_scope": "mlp", "align": 8, "scorer": "effect",
               "repair": "none"}  # fmt: skip
    stage = {"a_modifiers": before} if before else {}
    stage["p_modifiers"] = {"WidthPruningModifier": pruning | fields}
    if then:
        stage["q_modifiers"] = then
    return yaml.safe_dump({"t_stage": stage}, sort_keys=False)


TO_88 = {"ratio": 0.3}
REFUSED = {
    "R4 before": (text(spin("R1", "R2", "R4")), "leave R4 out"),
    "R4 in blocks before": (text(spin("R4", transform_block_size=32)), "leave R4 out"),
    "QuIP's inputs before": (text(quip("v")), r"rotates the neurons of .*down_proj"),
    "QuIP's outputs before": (text(quip("u")), r"rotates the neurons of .*gate_proj"),
    "SparseGPT before": (
        text({"SparseGPTModifier": {"sparsity": 0.5, "mask_structure": "2:4"}}), "put pruning first"
    ),
    "FP8 before": (
        text({"QuantizationModifier": {"targets": "Linear", "scheme": "FP8_DYNAMIC"} | HEAD}),
        "put pruning first",
    ),
    "R1 before gradients": (text(spin("R1"), scorer="loss_effect"), "put pruning first"),
    "R1 before repair": (text(spin("R1"), repair="distillation"), "put pruning first"),
    "R4 after": (text(then=spin("R1", "R2", "R4")), "width 96 .*64 and 128"),
    "R4 in blocks after": (
        text(then=spin("R4", transform_block_size=64)), "width 96 .*64 and 128"
    ),
    "QuIP's inputs after": (text(then=quip("v", transform_type="hadamard")), "width 96"),
    "QuIP's outputs after": (text(then=quip("u", transform_type="hadamard")), "width 96"),
    "random Hadamard after": (text(then=quip("v"), ratio=0.296, align=2), "width 90"),
    "any width that may be left": (
        text(then=spin("R4"), allocation="threshold", align=24), "width 24"
    ),
    "rows of blocks": (text(then=blocks(16, 8), **TO_88), "gate_proj in blocks"),
    "columns of blocks": (text(then=blocks(8, 16), **TO_88), "down_proj in blocks .*80 and 96"),
    "GPTQ in blocks": (
        text(then=blocks(16, 16, modifier="GPTQModifier"), **TO_88), "in blocks of 16"
    ),
    "FP8 in blocks": (
        text(then={"QuantizationModifier": {"targets": "Linear", "scheme": "FP8_BLOCK"} | HEAD}),
        "of 128",
    ),
    "activations in groups": (
        text(then=activations("input_activations", 32), **TO_88), "groups of activations of 32"
    ),
    "outputs in groups": (
        text(then=activations("output_activations", 32), **TO_88), "groups of activations of 32"
    ),
    "2:4": (text(then=sparse(), ratio=0.242, align=1), "2:4 sparse, .* width 97 .*96 and 100"),
    "NVFP4": (
        text(then={"QuantizationModifier": {"targets": "Linear", "scheme": "NVFP4A16"} | HEAD},
             **TO_88), "width 88",
    ),
    "MXFP4": (
        text(then={"QuantizationModifier": {"targets": "Linear", "scheme": "MXFP4A16"} | HEAD},
             **TO_88), "width 88",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_the_cut_is_refused_before_it(dense, texts, tmp_path, case):
    recipe_text, message = REFUSED[case]
    model = AutoModelForCausalLM.from_pretrained(dense)
    before, reads = logits(model), []
    model.register_forward_pre_hook(lambda *_: reads.append(1))
    with pytest.raises(RecipeError, match=message) as error:
        run(model, texts, recipe_text)
    assert "\n" not in str(error.value) and not reads
    assert torch.equal(logits(model), before)
    (dense / "model.safetensors").unlink()  # and `funcnet prune` does without the weights
    with pytest.raises(FuncnetError, match=message):
        prune(dense, texts, tmp_path / "out", recipe=recipe_text, samples=4, window=20)


WORKS = {
    "R1 and R2 before": text(spin("R1", "R2")),
    "R1 and R2 after": text(then=spin("R1", "R2")),
    "R4 in blocks that fit": text(then=spin("R4", transform_block_size=32)),
    "R4 at a power of two": text(then=spin("R4"), ratio=0.5),
    "QuIP after": text(then=quip("v")),
    "QuIP of the attention before": text(quip("v", targets=["re:.*self_attn.*_proj"])),
    "2:4 sparsity that fits": text(then=sparse("WandaPruningModifier"), ratio=0.3),
    "2:4 sparsity elsewhere": text(
        then=sparse(ignore=["lm_head", "re:.*down_proj"]), ratio=0.31, align=1
    ),
    "blocks that fit": text(then=blocks(8, 8), **TO_88),
    "blocks that the user answers for": text(then=blocks(16, 16, bypass=True), **TO_88),
}


@pytest.mark.parametrize("case", WORKS)
def test_what_goes_with_the_cut_is_let_through(dense, texts, case):
    model = run(AutoModelForCausalLM.from_pretrained(dense), texts, WORKS[case])
    assert model.config.intermediate_size in (64, 88, 96)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("kind", ["hadamard", "random-hadamard", "random-matrix"])
@pytest.mark.parametrize("block_size", [None, 8, 12])
def test_a_rotation_is_there_where_the_host_can_make_it(kind, block_size):
    from compressed_tensors.transform.utils.hadamard import (
        deterministic_hadamard_matrix,
        random_hadamard_matrix,
    )

    make = {"hadamard": deterministic_hadamard_matrix, "random-hadamard": random_hadamard_matrix}
    for width in range(4, 130):
        expected = block_size is None or width % block_size == 0
        try:
            if kind in make:
                make[kind](block_size or width, torch.float32)
        except ValueError:
            expected = False
        assert _rotatable(kind, width, block_size) == expected, width
