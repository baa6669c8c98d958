"""What runtimes are said to load is what their tests load, and what exports refuse."""

import json

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM
from typer.testing import CliRunner

from funcnet_plugin.adapters import bind
from funcnet_plugin.cli import app, main
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.export import export_model
from funcnet_plugin.runtimes import grids, read_checkpoint, ways
from tests.conftest import make_llama, make_tokenizer
from tests.export.test_gguf import checkpoint
from tests.families import FAMILIES

SHAPE = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 512}
W4A16 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group",
                    "symmetric": True},
    }},
}  # fmt: skip
FP8 = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token",
                              "dynamic": True, "symmetric": True},
    }},
}  # fmt: skip


def made(folder, widths=None, quantized=None, **changes):
    source = checkpoint(folder / "model", make_llama(**SHAPE | changes), widths)
    if quantized is not None:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    return source


def found(source):
    """Runtime, without its version -> how it loads and what export it needs."""
    return {
        way.runtime.partition(" ")[0]: (way.loads, way.export)
        for way in ways(read_checkpoint(source))
    }


AS_IT_IS = ("as it is", None)
SERVERS = ("SGLang", "TensorRT-LLM", "MLX-LM")


def test_one_width_is_stock(tmp_path):
    stock = dict.fromkeys(("transformers", "vLLM", *SERVERS), AS_IT_IS)
    exported = {"llama.cpp": ("after export", "gguf"), "onnxruntime": ("after export", "onnx")}
    assert found(made(tmp_path, (256, 256, 256))) == stock | exported


@pytest.mark.parametrize(
    ("widths", "servers", "vllm"),
    [
        ((512, 256, 256), "nemotron-nas", "nemotron-nas"),
        ((512, 384, 256), "padded", "remote-code"),
    ],
)
def test_several_widths_need_the_export_that_can_be_written(tmp_path, widths, servers, vllm):
    source = made(tmp_path, widths)
    expected = {
        "transformers": ("with this package", "remote-code"),
        "vLLM": ("with this package", vllm),
        "llama.cpp": ("after export", "gguf"), "onnxruntime": ("after export", "onnx"),
    }  # fmt: skip
    assert found(source) == expected | dict.fromkeys(SERVERS, ("after export", servers))
    for form in {export for _, export in found(source).values()} - {"onnx"}:
        export_model(source, tmp_path / form, form)  # what is advised can be done


def test_code_beside_a_checkpoint_builds_it(tmp_path):
    export_model(made(tmp_path, (512, 384, 256)), tmp_path / "out", "remote-code")
    assert found(tmp_path / "out")["transformers"] == found(tmp_path / "out")["vLLM"] == AS_IT_IS


@pytest.mark.parametrize("widths", [(256, 256, 256), (512, 384, 256)])
def test_a_quantized_checkpoint_is_exported_nowhere(tmp_path, widths):
    answers = found(made(tmp_path, widths, W4A16))
    assert not any(export for _, export in answers.values())
    one_width = len(set(widths)) == 1
    loads = "as it is" if one_width else "with this package"
    assert answers["transformers"][0] == answers["vLLM"][0] == loads
    assert answers["SGLang"][0] == ("as it is" if one_width else "no")
    assert answers["MLX-LM"][0] == answers["llama.cpp"][0] == answers["onnxruntime"][0] == "no"


def test_biases_are_said_where_they_would_be_lost(tmp_path):
    answers = found(made(tmp_path, mlp_bias=True))
    assert answers["SGLang"] == ("no", None) and answers["vLLM"] == AS_IT_IS
    assert answers["llama.cpp"] == ("after export", "gguf")


def test_an_architecture_without_a_gguf_of_ours_has_llama_cpps_converter(tmp_path):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    gemma = GemmaForCausalLM(GemmaConfig(**SHAPE | sizes, head_dim=32))
    source = checkpoint(tmp_path / "one", gemma)
    assert found(source)["llama.cpp"] == ("after its converter", None)
    several = checkpoint(tmp_path / "several", gemma, (512, 256))
    assert found(several)["llama.cpp"] == ("no", None)
    assert found(several)["SGLang"] == ("after export", "padded")


@pytest.mark.parametrize(
    ("name", "widths", "expected"),
    [
        ("falcon", 16, ("no", None)),
        ("chatglm", 16, AS_IT_IS),
        ("chatglm", (16, 24, 32), ("after export", "glm")),
    ],
)
def test_what_vllm_reads_otherwise_than_the_rest_is_said(tmp_path, name, widths, expected):
    model = FAMILIES[name].build()
    if isinstance(widths, int):
        widths = (widths,) * len(bind(model).widths)
    source = checkpoint(tmp_path / "model", model, widths, make_tokenizer())
    assert found(source)["vLLM"] == expected


@pytest.mark.parametrize(
    ("widths", "quantized", "expected"),
    [
        # common, off the tile, K-quants, q8_0, Marlin, devices
        ((512, 256, 256), None, (256, 0, True, True, True, (1, 2, 4))),
        ((512, 384, 256), None, (128, 0, False, True, True, (1, 2, 4))),
        ((512, 256, 256), W4A16, (256, 0, True, True, True, (1, 2))),
        ((512, 96, 256), None, (32, 1, False, True, False, (1, 2, 4))),
        ((512, 510, 34), None, (2, 2, False, False, False, (1, 2))),
    ],
)
def test_what_widths_allow(tmp_path, widths, quantized, expected):
    checked = read_checkpoint(made(tmp_path, widths, quantized))
    allowed = grids(checked)
    assert (
        allowed.common, allowed.off_tile, allowed.k_quants, allowed.q8_0, allowed.marlin,
        allowed.tensor_parallel,
    ) == expected  # fmt: skip
    assert len(allowed.remarks(3)) == sum(
        (allowed.off_tile > 0, not allowed.k_quants, not allowed.marlin)
    )


def test_quantizations_are_named(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert read_checkpoint(made(tmp_path / "a", None, W4A16)).scheme == "W4A16 in groups of 128"
    assert read_checkpoint(made(tmp_path / "b", None, FP8)).scheme == "Wfp8Afp8"


def test_the_command_prints_a_table_or_json(tmp_path):
    source = made(tmp_path, (512, 384, 256))
    printed = CliRunner().invoke(app, ["runtimes", str(source)]).stdout
    assert "with this package  remote-code  [1]  run" in printed
    assert "nearest of which are 256 and 512" in printed
    assert f"funcnet export {source} --format remote-code" in printed
    about = json.loads(CliRunner().invoke(app, ["runtimes", str(source), "--json"]).stdout)
    assert about["widths"] == [512, 384, 256] and about["grids"]["common"] == 128
    assert {way["runtime"].partition(" ")[0]: way["export"] for way in about["runtimes"]} == {
        name: export for name, (_, export) in found(source).items()
    }


def test_a_place_without_a_checkpoint_is_said(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_checkpoint(tmp_path)
    with pytest.raises(SystemExit):
        main(["runtimes", str(tmp_path)])
    assert "has no config.json" in capsys.readouterr().err
