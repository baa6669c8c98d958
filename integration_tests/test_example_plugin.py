"""Packages that bring an adapter and parts: unknown before they are installed, used after."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, XGLMConfig, XGLMForCausalLM

from funcnet_plugin.checkpoints.block import read_kept
from funcnet_plugin.text.windows import token_windows
from tests.conftest import LETTERS, make_llama, make_tokenizer
from tests.hosting import logits, reload_without_us

HERE = Path(__file__).parent
PARTS = """
prune_stage:
  pruning_modifiers:
    FunctionalNetworkModifier:
      pruning_ratio: 0.1
      scorer:
        - name: networks
          n_components: 6
          samples_per_group: 8
          decomposer: {name: varimax, max_iter: 50}
        - {name: peak, deviations: 2.0}
      repair: {name: rescale, limit: 1.5}
      align: 8
"""


def install(plugin: str, path: Path) -> Path:
    """A plugin, installed by pip where only a process that looks there finds it."""
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--target", path)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, HERE / plugin], check=True)
    return path


def save(model: PreTrainedModel, path: Path) -> None:
    """A checkpoint with a tokenizer, and texts to calibrate on beside it."""
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    rng = random.Random(0)
    texts = ["".join(rng.choices(LETTERS, k=600)) for _ in range(12)]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return install("example_plugin", tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return install("example_parts", tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save(make_llama(), path)
    (path / "parts.yaml").write_text(PARTS)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("xglm")
    torch.manual_seed(0)
    config = XGLMConfig(
        vocab_size=32, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    save(XGLMForCausalLM(config), path)
    return path


def environment(path: object) -> dict[str, str]:
    """That of a process which also finds what is installed at a path."""
    places = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(places)}


def funcnet(*arguments: object, path: Path | str = "", fails: bool = False) -> str:
    done = subprocess.run(
        [Path(sys.executable).parent / "funcnet", *map(str, arguments)],
        capture_output=True, text=True,
        env=environment(path),
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def prune(
    model: Path, out: Path, *settings: str, recipe: object = "ica_prune", **options
) -> dict | str:
    """Prune by the texts that lie beside the model; what is said, where it fails."""
    said = funcnet(
        "prune", model, "--data", model / "texts.jsonl", "--out", out, "--json",
        "--recipe", recipe, "--samples", 16, "--window", 40,
        *(part for setting in settings for part in ("--set", setting)), **options,
    )  # fmt: skip
    return said if options.get("fails") else json.loads(said)


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
    settings = (
        "scorer.networks.n_components=6", "scorer.networks.samples_per_group=8", "align=8",
        "own_text=0.0", "repair=least_squares",
    )  # fmt: skip
    block = prune(model, tmp_path / "out", *settings, "pruning_ratio=0.1", path=site)
    (width,) = set(block["kept_widths"])
    assert width < 48
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.ffn_dim == width
    assert torch.equal(reload_without_us(tmp_path / "out"), logits(again))


def test_parts_of_a_plugin_prune_together(parts, llama, tmp_path):
    block = prune(llama, tmp_path / "out", recipe=llama / "parts.yaml", path=parts)
    networks, peak = block["settings"]["scorer"]
    assert networks["decomposer"] == {"name": "varimax", "max_iter": 50}
    assert peak == {"name": "peak", "deviations": 2.0}
    assert block["settings"]["repair"] == {"name": "rescale", "limit": 1.5}
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["functional_network"] == block
    (width,) = set(block["kept_widths"])
    assert width < 48
    # two groups of samples, one start each
    assert block["measured"]["ica_runs"] == [2] * 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reload_without_us(tmp_path / "out"), logits(again))


def test_what_is_kept_and_how_it_is_repaired_are_what_the_formulas_give(parts, llama, tmp_path):
    """Layer by layer, each behind those that are pruned already."""
    out = tmp_path / "out"
    recipe = llama / "parts.yaml"
    alone = tmp_path / "alone.yaml"
    # that of networks asks for networks
    alone.write_text(recipe.read_text().replace("FunctionalNetwork", "WidthPruning"))
    settings = ("scorer={name: peak, deviations: 2.0}", "repair.limit=1.03")
    prune(llama, out, *settings, recipe=alone, path=parts)
    dense, pruned = map(AutoModelForCausalLM.from_pretrained, (llama, out))
    lines = (llama / "texts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    ids = torch.tensor(token_windows(texts, make_tokenizer(), window=40, samples=16, seed=0))
    for layer, after, keep in zip(
        dense.model.layers, pruned.model.layers, read_kept(out)[1], strict=True
    ):
        seen = []
        hook = layer.mlp.down_proj.register_forward_pre_hook(lambda m, a, s=seen: s.append(a[0]))
        with torch.no_grad():
            dense(ids)
        hook.remove()
        h = seen[0].flatten(0, -2).double()
        W = layer.mlp.down_proj.weight.detach().double()
        peak = (h.mean(0).abs() + 2.0 * h.std(0, correction=0)) * W.norm(dim=0)
        assert keep == sorted(peak.topk(len(keep)).indices.tolist())
        cut = h[:, keep] @ W[:, keep].T
        factor = ((h @ W.T).square().mean(0) / cut.square().mean(0)).sqrt().clamp_max(1.03)
        assert (factor < 1.03).any() and (factor == 1.03).any()
        expected = W[:, keep] * factor.unsqueeze(1)
        torch.testing.assert_close(after.mlp.down_proj.weight.double(), expected)
        layer.mlp = after.mlp


def test_networks_across_layers_take_the_decomposer_of_a_plugin(parts, llama, tmp_path):
    settings = ("scorer.networks.strategy=global", "allocation=threshold", "align=1")
    block = prune(llama, tmp_path / "out", *settings, recipe=llama / "parts.yaml", path=parts)
    assert len(block["measured"]["outside_strongest_layer"]) == 3


REFUSED = """
import json, sys
from typer.testing import CliRunner
from funcnet_plugin import cli
*arguments, settings = sys.argv[1:]
for setting in json.loads(settings):
    print(repr(CliRunner().invoke(cli.app, [*arguments, "--set", setting]).exception))
"""


def refusals(
    model: Path, out: Path, settings: list[str], recipe: object, path: object = ""
) -> list[str]:
    """What `funcnet prune` says of each of these settings, a line each, in one process."""
    arguments = ("prune", model, "--data", model / "texts.jsonl", "--out", out, "--recipe", recipe)
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *map(str, arguments), json.dumps(settings)],
        check=True, capture_output=True, text=True, env=environment(path),
    )  # fmt: skip
    assert not out.exists()
    return [line for line in done.stdout.splitlines() if "Error(" in line]


def test_a_parameter_of_another_part_is_one_sentence(parts, llama, tmp_path):
    expected = {
        "scorer.peak.n_components=4": "the scorer peak has no parameter 'n_components' (it has "
        "deviations); it belongs to networks; leave it out.",
        "repair.epochs=1": "the repair rescale has no parameter 'epochs' (it has limit); it "
        "belongs to distillation; leave it out.",
        "scorer.networks.decomposer.tol=0.1": "the decomposer varimax has no parameter 'tol' (it "
        "has max_iter); it belongs to canica; leave it out.",
        "scorer.peak.deviations=-1": "deviations=-1: Input should be greater than or equal to 0",
        "repair=shrink": "there is no repair 'shrink'; choose one of none, bias, ",
    }
    found = refusals(llama, tmp_path / "out", [*expected], llama / "parts.yaml", parts)
    for message, said in zip(found, expected.values(), strict=True):
        assert message.startswith("RecipeError(") and said in message


def test_without_the_plugin_its_parts_are_refused_by_name(llama, tmp_path):
    expected = {
        "scorer=peak": "there is no scorer 'peak'; choose one of effect, ",
        "repair=rescale": "there is no repair 'rescale'; choose one of none, bias, ",
        "scorer.networks.decomposer=varimax": "there is no decomposer 'varimax'; choose one of "
        "canica, nilearn, pca, dictionary, nmf, autoencoder, or install a package that brings it.",
    }
    found = refusals(llama, tmp_path / "out", [*expected], "ica_prune")
    for message, said in zip(found, expected.values(), strict=True):
        assert message.startswith("RecipeError(") and said in message
