"""A package that brings an adapter: unknown before it is installed, pruned after."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, XGLMConfig, XGLMForCausalLM

from tests.conftest import LETTERS, make_tokenizer
from tests.hosting import logits, reload_without_us

PLUGIN = Path(__file__).parent / "example_plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The example plugin, installed by pip where only a process that looks there finds it."""
    path = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--target", path)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, PLUGIN], check=True)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("xglm")
    torch.manual_seed(0)
    config = XGLMConfig(
        vocab_size=32, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    XGLMForCausalLM(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    rng = random.Random(0)
    texts = ["".join(rng.choices(LETTERS, k=600)) for _ in range(12)]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def funcnet(*arguments: object, path: Path | str = "", fails: bool = False) -> str:
    done = subprocess.run(
        [Path(sys.executable).parent / "funcnet", *map(str, arguments)],
        capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(path)},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def test_without_the_plugin_the_way_to_add_one_is_named(model):
    message = funcnet("inspect", model, fails=True)
    assert "'XGLMForCausalLM'" in message and "funcnet_adapters" in message


def test_the_plugin_is_listed_with_its_package(site):
    rows = json.loads(funcnet("inspect", "--adapters", "--json", path=site))
    ours = {"name": "xglm", "source": "funcnet-xglm (xglm)", "architectures": ["XGLMForCausalLM"]}
    assert rows[0] == ours and {row["source"] for row in rows[1:]} == {"funcnet_plugin"}
    assert "funcnet-xglm (xglm)" in funcnet("inspect", "--adapters", path=site)


def test_the_plugins_architecture_is_inspected_and_pruned(site, model, tmp_path):
    shape = json.loads(funcnet("inspect", model, "--align", 8, "--json", path=site))
    assert shape["adapter"] == "xglm" and shape["widths"] == [48] * 3
    settings = ("n_components=6", "samples_per_group=8", "align=8")
    block = json.loads(
        funcnet(
            "prune", model, "--data", model / "texts.jsonl", "--out", tmp_path / "out", "--json",
            "--ratio", 0.1, "--samples", 16, "--window", 40,
            *(part for setting in settings for part in ("--set", setting)),
            path=site,
        )
    )  # fmt: skip
    (width,) = set(block["kept_widths"])
    assert width < 48
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.ffn_dim == width
    assert torch.equal(reload_without_us(tmp_path / "out"), logits(again))
