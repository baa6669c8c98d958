"""The issue's own words, on a small LLaMA trained on real text (skips where it is not there)."""

import json
import subprocess
import sys

import pytest
import torch
from datasets import load_dataset
from llmcompressor import oneshot

from funcnet_plugin.checkpoints.loading import load_tokenizer
from funcnet_plugin.recipe import dump_recipe, load_recipe, override, recipe_path
from funcnet_plugin.text.sources import load_texts
from funcnet_plugin.text.windows import make_loader, token_windows
from tests.conftest import shared_data
from tests.hosting import WITHOUT_US, back_on_the_cpu

ALIGN = 32
IDS = torch.arange(5, 405).reshape(2, 200)
RELOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model(torch.arange(5, 405).reshape(2, 200)).logits, sys.argv[2])
assert "funcnet_plugin" not in sys.modules
"""


@pytest.fixture
def recipe(tmp_path):
    """recipes/ica_prune.yaml as a copy with align lowered (width 704 is no multiple of 128), and
    with fewer networks and starts, for time."""

    def copy(ratio: float, **fields):
        path = tmp_path / f"ica_prune_{ratio}.yaml"
        changes = {
            "align": ALIGN,
            "pruning_ratio": ratio,
            "scorer.networks.n_components": 64,
            "scorer.networks.decomposer.n_init": 2,
        }
        changed = override(load_recipe(recipe_path("ica_prune")), changes | fields)
        path.write_text(dump_recipe(changed))
        return str(path)

    return copy


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
def test_oneshot_reaches_the_ratio_and_stock_transformers_reloads_bit_for_bit(
    recipe, tmp_path, ratio
):
    texts = load_dataset(
        "json", data_files=str(shared_data("wikitext-2", "valid.jsonl")), split="train"
    ).rename_column("page", "text")
    out = tmp_path / "out"
    model = oneshot(
        model=str(shared_data("ref-llama")),
        recipe=recipe(ratio),
        dataset=texts,
        num_calibration_samples=60,
        max_seq_length=128,
        output_dir=str(out),
    )
    before, step = 5_475_584, ALIGN * 3 * 256 * 6
    assert abs((before - model.num_parameters()) - ratio * before) <= step
    block = json.loads((out / "config.json").read_text())["functional_network"]
    assert block["pruning_ratio_reached"] == pytest.approx(
        1 - model.num_parameters() / before, rel=1e-12
    )
    subprocess.run(
        [sys.executable, "-c", RELOAD, out, tmp_path / "logits.pt"], check=True, env=WITHOUT_US
    )
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), back_on_the_cpu(model)(IDS).logits)


def test_the_kept_neurons_do_not_depend_on_the_batch_size(recipe):
    source = shared_data("ref-llama")
    windows = token_windows(
        load_texts(shared_data("wikitext-2", "valid.jsonl"), "page"),
        load_tokenizer(source),
        window=128,
        samples=80,
        seed=0,
    )
    kept = []
    for batch_size in (1, 8):
        # gate rows tell neurons apart as long as the repair leaves them alone
        model = oneshot(
            model=str(source),
            recipe=recipe(0.2, own_text=0.0, repair="least_squares"),
            dataset=make_loader(windows, batch_size),
        )
        kept.append([layer.mlp.gate_proj.weight for layer in model.model.layers])
    for one, eight in zip(*kept, strict=True):
        assert torch.equal(one, eight)
