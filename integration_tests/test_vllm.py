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

from tests.conftest import make_tokenizer
from tests.export.test_gguf import checkpoint
from tests.families import FAMILIES

REPOSITORY = Path(__file__).parents[1]
PYTHON = REPOSITORY / ".runtimes" / "vllm-env" / "bin" / "python"
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

    def __init__(self, python: Path, log: Path, **environment: str) -> None:
        own = {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        environment = os.environ | own | environment
        environment.pop("PYTHONPATH", None)  # its own packages, not ours
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, Path(__file__).with_name("in_vllm.py")],
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
    if not PYTHON.exists():
        pytest.skip("vLLM is not installed; make test-runtimes installs it")
    server = Server(PYTHON, folder.mktemp("vllm") / "log", **environment)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    with serving(tmp_path_factory) as server:
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


def agree(answer: dict, path: Path, tolerance: float) -> None:
    assert "error" not in answer, answer["error"]
    logprobs, written = expected(path)
    assert logprobs.abs().max() > 3  # not a model that says nothing
    torch.testing.assert_close(torch.tensor(answer["logprobs"]), logprobs, atol=tolerance, rtol=0)
    assert answer["written"] == written


@pytest.mark.parametrize("each", EACH)
@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_computes_what_transformers_does(tmp_path, vllm, name, each):
    source = checkpoint(tmp_path / "model", build(name), EACH[each], make_tokenizer())
    answer = vllm(source)
    if name == "falcon" or (name == "chatglm" and each == "per layer"):
        assert "error" in answer, "vLLM has learnt it"
        pytest.xfail(FALCON if name == "falcon" else CHATGLM)
    agree(answer, source, 1e-4)
