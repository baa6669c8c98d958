import json
import shutil
import subprocess
import sys

import pytest
import torch
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.loading import model_without_weights
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.export import export_model
from funcnet_plugin.hosts.llmcompressor.modifiers import FunctionalNetworkModifier
from funcnet_plugin.preflight import check_form
from tests.conftest import make_llama
from tests.export.test_gguf import checkpoint
from tests.hosting import IDS, WITHOUT_US, logits, networks, recipe, reload_without_us, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


@pytest.fixture(scope="module")
def sources(tmp_path_factory, texts):
    """A uniform and a per-layer checkpoint, with tokenizer."""
    from tests.conftest import make_llama, make_tokenizer

    base = tmp_path_factory.mktemp("export")
    make_llama(mlp_bias=True).save_pretrained(base / "dense")
    make_tokenizer().save_pretrained(base / "dense")
    kinds = {"uniform": {}, "per_layer": {"allocation": "threshold", "align": 1}}
    for kind, fields in kinds.items():
        run(str(base / "dense"), texts, recipe(**fields), output_dir=str(base / kind))
    return base


def test_padded_is_stock_and_gives_the_same_logits(sources, tmp_path):
    source, out = sources / "per_layer", tmp_path / "padded"
    export_model(source, out, "padded")
    expected = logits(AutoModelForCausalLM.from_pretrained(source))
    torch.testing.assert_close(reload_without_us(out), expected, atol=1e-5, rtol=1e-5)
    model = AutoModelForCausalLM.from_pretrained(out)
    widths = bind(AutoModelForCausalLM.from_pretrained(source)).widths
    assert bind(model).widths == [max(widths)] * 3 and len(set(widths)) > 1
    assert model.config.functional_network["kept_widths"] == widths
    assert model.config.functional_network["padded_to"] == max(widths)
    assert len(AutoTokenizer.from_pretrained(out)) == 32


def test_remote_code_brings_its_own_loader(sources, tmp_path):
    source, out = sources / "per_layer", tmp_path / "remote"
    export_model(source, out, "remote-code")
    expected = logits(AutoModelForCausalLM.from_pretrained(source))
    assert torch.equal(reload_without_us(out, trust_remote_code=True), expected)
    # where the plugin is, nobody needs to trust anything
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), expected)


def test_a_form_that_the_recipe_will_not_leave_is_refused_before_it_runs(sources):
    def planned(model, **fields):
        small = {"pruning_ratio": 0.2, "align": 4, "scorer": networks()}
        modifier = FunctionalNetworkModifier(**small | fields)
        modifier.plan(model, None)
        return modifier

    dense = model_without_weights(sources / "dense")
    equal = [planned(dense)]
    with pytest.raises(FuncnetError, match="leaves one width in all layers"):
        check_form("remote-code", dense, equal)
    with pytest.raises(FuncnetError, match="glm is for ChatGLM"):
        check_form("glm", dense, equal)
    with pytest.raises(FuncnetError, match="padded takes no quantized model"):
        check_form("padded", dense, [*equal, GPTQModifier(targets=["Linear"], scheme="W4A16")])
    # equal widths at most: layers that were narrower stay so
    per_layer = model_without_weights(sources / "per_layer")
    check_form("remote-code", per_layer, [planned(per_layer, align=1, pruning_ratio=0.005)])
    check_form("remote-code", dense, [planned(dense, allocation="threshold")])
    check_form("remote-code", dense, [planned(dense, skip_first=1)])


@pytest.mark.parametrize("form", ["padded", "remote-code"])
def test_older_readers_find_the_rotary_base(tmp_path, form):
    """They would take 10000 for it, without a word."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    checkpoint(tmp_path / "model", make_llama(rope_parameters=rope), (48, 40, 44))
    export_model(tmp_path / "model", tmp_path / "out", form)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 500000.0


def test_remote_code_survives_saving_again(sources, tmp_path):
    export_model(sources / "per_layer", tmp_path / "remote", "remote-code")
    code = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "m.save_pretrained(sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "remote", tmp_path / "again"],
        check=True, env=WITHOUT_US,
    )  # fmt: skip
    again = reload_without_us(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again, reload_without_us(tmp_path / "remote", trust_remote_code=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["uniform", "per_layer"])
def test_onnx_runs_in_onnxruntime_at_other_lengths(sources, tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_model(sources / kind, tmp_path / "onnx", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    inputs = {"input_ids": IDS.numpy(), "attention_mask": torch.ones_like(IDS).numpy()}
    found = torch.from_numpy(session.run(["logits"], inputs)[0])
    expected = logits(AutoModelForCausalLM.from_pretrained(sources / kind))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "form", "message"),
    [
        (
            "uniform",
            "mlx",
            "no export format 'mlx'; choose one of padded, remote-code",
        ),
        ("uniform", "glm", "is a LlamaForCausalLM; only a ChatGLM has another format"),
        ("uniform", "remote-code", "one width for all layers"),
        ("quantized", "padded", "is quantized"),
        ("nowhere", "onnx", "is not a checkpoint"),
    ],
)
def test_bad_requests_write_nothing(sources, tmp_path, source, form, message):
    shutil.copytree(sources / "uniform", tmp_path / "quantized")
    config = json.loads((tmp_path / "quantized" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    folder = tmp_path if source == "quantized" else sources
    with pytest.raises(FuncnetError, match=message):
        export_model(folder / source, tmp_path / "out", form)
    assert [p.name for p in tmp_path.iterdir()] == ["quantized"]
