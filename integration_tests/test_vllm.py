"""Pruned checkpoints served by vLLM itself: what it computes and writes is transformers'.

`make test-runtimes` makes an environment for vLLM with this package in it, and runs these. vLLM
runs on the CPU, several models in one process; the checkpoints are made here, beside it.
"""

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.export import export_model
from tests.conftest import make_tokenizer
from tests.export.test_gguf import checkpoint
from tests.families import FAMILIES
from tests.hosting import networks, recipe, run
from tests.hosts.llmcompressor.test_quantization import FP8, W8A8, w4a16

PYTHON = os.environ.get("FUNCNET_VLLM")
if not PYTHON:
    pytest.skip("FUNCNET_VLLM names no Python with vLLM", allow_module_level=True)
IDS = torch.randint(3, 32, (40,), generator=torch.Generator().manual_seed(5)).tolist()
# vLLM's kernels for attention on a CPU want heads of 32 and more, those for int4 rows of 32.
SIZES = {"hidden_size": 128, "head_dim": 32, "word_embed_proj_dim": 128, "rotary_dim": 16}
WIDTHS = {"intermediate_size": 128, "n_inner": 128, "ffn_hidden_size": 128, "ffn_dim": 128}
TIED = ("gemma2", "cohere", "cohere2")  # vLLM has no head of its own for these
EACH = {"uniform": (64, 64, 64), "per layer": (128, 32, 79)}
# vLLM has code of its own for these, with a width of its own.
FALCON = "vLLM's Falcon has four times the hidden size for its width"
CHATGLM = "vLLM's config of ChatGLM has no intermediate_size"


class Server:
    """One process of vLLM, which loads one checkpoint after another."""

    def __init__(self, log: Path, **environment: str) -> None:
        own = {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        environment = os.environ | own | environment
        environment.pop("PYTHONPATH", None)  # its own packages, not ours
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [PYTHON, Path(__file__).with_name("in_vllm.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment,
            )  # fmt: skip
        self.log = log

    def __call__(self, path: Path, **options) -> dict:
        request = {"path": str(path), "ids": IDS, "options": options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"vLLM died; its log: {self.log}"
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def serving(folder, **environment: str):
    server = Server(folder.mktemp("vllm") / "log", **environment)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    with serving(tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="module")
def without_us(tmp_path_factory):
    with serving(tmp_path_factory, FUNCNET_AUTOLOAD="0") as server:
        yield server


def build(name: str, **changes):
    """A random model of a family, of sizes that vLLM has kernels for on a CPU."""
    family = FAMILIES[name]
    own = {k: v for k, v in (SIZES | WIDTHS).items() if k in family.settings}
    own |= {"tie_word_embeddings": name in TIED}
    if name == "gemma2":
        own |= {"attn_logit_softcapping": None}  # vLLM's kernel for a CPU computes it less exactly
    if name == "chatglm":
        own |= {"original_rope": True}  # as its real checkpoints say
    model = replace(family, settings=family.settings | own | changes).build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # made for a third of the width
                parameter.mul_(0.5)
    return model


def expected(path: Path) -> tuple[torch.Tensor, list[int]]:
    """What transformers computes: log-probabilities of the prompt, and what is written behind."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        written = model.generate(ids, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    return logprobs, written[0, len(IDS) :].tolist()


def agree(answer: dict, path: Path, tolerance: float, written: bool = True) -> None:
    """Compare with transformers: log-probabilities, and, if `written`, every token behind them."""
    assert "error" not in answer, answer["error"]
    logprobs, tokens = expected(path)
    assert logprobs.abs().max() > 3  # not a model that says nothing
    torch.testing.assert_close(torch.tensor(answer["logprobs"]), logprobs, atol=tolerance, rtol=0)
    assert answer["written"] == tokens or not written


@pytest.mark.parametrize("each", EACH)
@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_computes_what_transformers_does(tmp_path, vllm, name, each):
    source = checkpoint(tmp_path / "model", build(name), EACH[each], make_tokenizer())
    answer = vllm(source)
    if name == "falcon" or (name == "chatglm" and each == "per layer"):
        assert "error" in answer, "vLLM has learnt it"
        pytest.xfail(FALCON if name == "falcon" else CHATGLM)
    agree(answer, source, 1e-4)


PRUNING = {"align": 32, "scorer": [networks(), "effect"], "pruning_ratio": 0.2}
# Recipe, dtype in vLLM, and how far a log-probability of up to 9 may be from transformers' in
# float32. Rounded activations fall to other sides; without their rounding transformers is 1 off
# with FP8 and 0.2 with W8A8. vLLM's kernel for int4 on a CPU takes bfloat16 only.
QUANTIZED = {
    "W4A16": (w4a16(32), "bfloat16", 0.25),
    "FP8": (FP8, "float32", 0.15),
    "W8A8": (W8A8, "float32", 0.5),
}
MODIFIER = "FunctionalNetworkModifier"


@pytest.fixture
def pruned(tmp_path, texts, forget_the_session):
    """Prunes a LLaMA as a user does, with whatever follows in the recipe."""

    def prune(then=None, name=MODIFIER, **fields) -> Path:
        build("llama").save_pretrained(tmp_path / "dense")
        make_tokenizer().save_pretrained(tmp_path / "dense")
        text = recipe(name, then=then, **PRUNING | fields)
        run(str(tmp_path / "dense"), texts, text, output_dir=str(tmp_path / "pruned"))
        return tmp_path / "pruned"

    return prune


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_quantized_after_pruning(vllm, pruned, scheme, allocation):
    then, dtype, tolerance = QUANTIZED[scheme]
    source = pruned(then, allocation=allocation)
    config = json.loads((source / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert ("per_layer_config" in config) == (allocation == "threshold")
    agree(vllm(source, dtype=dtype), source, tolerance, written=False)


def test_heads_and_neurons_cut(vllm, pruned):
    source = pruned(
        name="WidthPruningModifier", scorer="effect", heads_ratio=0.5, pruning_ratio=0.4
    )
    config = json.loads((source / "config.json").read_text())
    assert (config["num_attention_heads"], config["head_dim"]) == (2, 32)
    agree(vllm(source), source, 1e-4)


def test_a_bias_that_repair_made(vllm, pruned):
    source = pruned(allocation="threshold", repair="bias")
    config = json.loads((source / "config.json").read_text())
    assert config["mlp_bias"] and "per_layer_config" in config
    agree(vllm(source), source, 1e-4)


@pytest.fixture(scope="module")
def layers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "model"
    return checkpoint(folder, build("llama"), EACH["per layer"], make_tokenizer())


@pytest.mark.parametrize(
    "options", [{"enforce_eager": False}, {"model_impl": "transformers"}], ids=["compiled", "hf"]
)
def test_other_ways_to_run_the_same_model(vllm, layers, options):
    agree(vllm(layers, **options), layers, 1e-4)


def test_widths_that_processes_cannot_share_are_refused_before_any_starts(vllm, layers):
    error = vllm(layers, tensor_parallel_size=2)["error"]
    assert "layer 2 is 79 neurons wide, which 2 tensor-parallel processes cannot" in error


def test_processes_share_widths(tmp_path, tmp_path_factory):
    """Two processes of half the heads and neurons each, started by a third, all with the plugin."""
    source = checkpoint(tmp_path / "model", build("llama"), (128, 32, 78), make_tokenizer())
    with serving(tmp_path_factory, VLLM_ENABLE_V1_MULTIPROCESSING="1") as server:
        agree(server(source, tensor_parallel_size=2), source, 1e-4)


@pytest.mark.parametrize(
    ("form", "widths"), [("nemotron-nas", (256, 768, 512)), ("remote-code", (128, 32, 79))]
)
def test_exports_need_no_plugin(tmp_path, without_us, form, widths):
    model = build("llama", intermediate_size=max(widths))
    source = checkpoint(tmp_path / "model", model, widths, make_tokenizer())
    export_model(source, tmp_path / "out", form)
    agree(without_us(tmp_path / "out", trust_remote_code=True), source, 1e-4)


def test_without_the_plugin_vllm_refuses_widths_per_layer(without_us, layers):
    assert "intermediate_size" in without_us(layers)["error"]
