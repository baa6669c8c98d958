"""The `funcnet` command as a user types it; one process per call only where it matters."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from funcnet_plugin import cli
from funcnet_plugin import pruning as prune_module
from funcnet_plugin.checkpoints.loading import read_model_config
from funcnet_plugin.errors import (
    BudgetError,
    CalibrationError,
    CheckpointError,
    FuncnetError,
    RecipeError,
)
from tests.conftest import make_llama

FAST = ["--set", "align=4", "--set", "scorer.networks.n_components=6",
        "--set", "scorer.networks.samples_per_group=8",
        "--samples", "16", "--window", "40"]  # fmt: skip


@pytest.fixture
def text(tmp_path, texts):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def call(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


def test_prune_writes_a_checkpoint_and_prints_json(checkpoint, text, tmp_path):
    """In a process of its own: stdout is one JSON document whatever the hosts print."""
    out = tmp_path / "pruned"
    command = [
        "prune",
        checkpoint,
        "--data",
        text,
        "--out",
        out,
        "--ratio",
        "0.25",
        "--json",
        *FAST,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "funcnet_plugin.cli", *map(str, command)],
        capture_output=True,
        text=True,
        check=True,
    )
    block = json.loads(done.stdout)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert block["kept_widths"] == [model.config.intermediate_size] * 3
    assert block["pruning_ratio_requested"] == 0.25
    assert block["parameters_after"] == model.num_parameters()
    assert (out / "tokenizer.json").exists() and (out / "recipe.yaml").exists()
    assert not list(tmp_path.glob(".pruned-*"))


@pytest.mark.usefixtures("forget_the_session")
@pytest.mark.parametrize(
    ("modifier", "said"),
    [
        ("WidthPruningModifier: {pruning_ratio: 0.2, align: 4}", "widths "),
        ("DepthPruningModifier: {pruning_ratio: 0.3}", "layers ["),
        ("HiddenSlicingModifier: {pruning_ratio: 0.2, multiple_of: 2}", "hidden size "),
    ],
)
def test_prune_says_what_every_modifier_left(checkpoint, text, tmp_path, modifier, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"a_stage:\n  pruning_modifiers:\n    {modifier}\n")
    result = call("prune", checkpoint, "--data", text, "--out", tmp_path / "pruned",
                  "--recipe", recipe, "--samples", "16", "--window", "40")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert said in result.output
    assert (tmp_path / "pruned" / "config.json").exists()


def test_a_second_run_says_what_it_removed_and_what_both_did(checkpoint, text, tmp_path):
    begun, counts, said = checkpoint, [], ""
    for out in (tmp_path / "once", tmp_path / "twice"):
        counts.append(AutoModelForCausalLM.from_pretrained(begun).num_parameters())
        result = call("prune", begun, "--data", text, "--out", out, "--ratio", 0.1, *FAST)
        assert result.exit_code == 0, result.output
        begun, said = out, result.output
    counts.append(AutoModelForCausalLM.from_pretrained(begun).num_parameters())
    first, found, left = counts
    assert f"{found:,} -> {left:,} parameters, {1 - left / found:.4f} removed (asked: 0.1)" in said
    both = f"with the runs before, {1 - left / first:.4f} of the {first:,} in {checkpoint}"
    assert both in said.replace("\n", "")


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "funcnet_plugin.cli", "inspect", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path} is not a checkpoint: it has no config.json.\n"


@pytest.mark.parametrize("name", ["./nothing", "/no/where", "~/llama", "models/of/mine"])
def test_a_directory_that_is_not_there_is_called_that(name):
    with pytest.raises(CheckpointError, match=f"there is no {name}; give a checkpoint directory"):
        read_model_config(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--ratio", "1.5"], "between 0 and 1"),
        (["--ratio", "0.95"], "at most"),
        (["--set", "ratoi=1"], "unknown field 'ratoi'"),
        (["--set", "ratio"], "NAME=VALUE"),
        (["--set", "allocation=even"], "allocation='even'"),
        (["--set", "scorer=best"], "no scorer 'best'"),
        (["--set", "scorer.networks.n_components=500"], "n_components=500"),
        (["--set", "scorer.networks.components=5"], "networks has no parameter 'components'"),
        (["--set", "scorer.n_components=5"], "say of which, as in scorer.networks.n_components"),
        (["--set", "repair.epoch=5"], "distillation has no parameter 'epoch'"),
        (
            ["--set", "n_components=5"],
            "is of an earlier version; it is written now: scorer: ",
        ),
        (["--set", "ignore=[model.layers.7.mlp]"], "'model.layers.7.mlp' matches no MLP"),
        (["--samples", "4"], "samples_per_group=8"),
        (["--window", "100000", "--samples", "8", "--data", "{tmp}/small.txt"], "one sample needs"),
        (["--data", "{tmp}/missing.jsonl"], "does not exist"),
        (["--text-column", "page"], "no column 'page'"),
        (["--out", "{tmp}/model"], "not empty"),
        (["--out", "{tmp}/text.jsonl"], "is a file"),
        (["--recipe", "{tmp}/gone.yaml"], "cannot be read"),
        (["--recipe", "{tmp}/bare.yaml"], "ignores the top-level key"),
        (["--recipe", "{tmp}/typo.yaml"], "the recipe cannot be used"),
        (["--recipe", "{tmp}/field.yaml"], "GPTQModifier: unknown field 'blok_size'"),
        (["--set", "ignore=['re:(']"], "is no regular expression"),
        (["--set", "scorer.networks.signals=[act"], "is not valid YAML"),
        (["--data", "{tmp}/bare.yaml:inf"], "must be a positive number"),
        (["--out", "{tmp}/text.jsonl/out"], "is a file, so"),
        (["--export", "glm"], "glm is for ChatGLM"),
        (["--export", "remote-code"], "one width in all layers"),
        (["--export", "onnx", "--recipe", "ica_prune_gptq"], "onnx takes no quantized model"),
    ],
)
def test_bad_requests_write_nothing(checkpoint, text, tmp_path, change, message):
    (tmp_path / "small.txt").write_text("too short")
    first = "FunctionalNetworkModifier: {pruning_ratio: 0.2, scorer: networks}"
    (tmp_path / "bare.yaml").write_text(first)
    for name, second in (("typo", "GPTQModifer: {}"), ("field", "GPTQModifier: {blok_size: 3}")):
        both = f"s_stage: {{p_modifiers: {{{first}, {second}}}}}"
        (tmp_path / f"{name}.yaml").write_text(both)
    before = sorted(tmp_path.rglob("*"))
    change = [part.format(tmp=tmp_path) for part in change]
    result = call(
        "prune",
        checkpoint,
        "--data",
        text,
        "--out",
        tmp_path / "out",
        "--ratio",
        0.2,
        *FAST,
        *change,
    )
    assert isinstance(result.exception, FuncnetError), result.output
    assert message in str(result.exception) and "\n" not in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        ["--ratio", "1.5"],
        ["--ratio", "0.9"],
        ["--set", "scorer=[networks, magic]"],
        ["--set", "ignore=[model.layers.7.mlp]"],
        ["--set", "scorer.networks.samples_per_group=17"],
        ["--set", "scorer.networks.n_components=999"],
    ],
)
def test_what_the_shapes_tell_is_refused_before_weights_and_text_are_read(
    checkpoint, text, tmp_path, change
):
    (checkpoint / "model.safetensors").unlink()
    text.unlink()
    out = tmp_path / "out"
    result = call("prune", checkpoint, "--data", text, "--out", out, "--ratio", 0.2, *FAST, *change)
    assert isinstance(result.exception, BudgetError | RecipeError | CalibrationError)
    assert "text.jsonl" not in str(result.exception) and not out.exists()


def test_the_recipes_seed_draws_the_windows(checkpoint, text, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        prune_module, "mixed_windows", lambda *a, seed, **k: drawn.append(seed) or 1 / 0
    )
    recipe = tmp_path / "seeded.yaml"
    fields = "{pruning_ratio: 0.2, scorer: random, align: 4, seed: 7}"
    recipe.write_text(f"a_stage: {{b_modifiers: {{WidthPruningModifier: {fields}}}}}")
    for more in ([], ["--set", "seed=3"]):
        call(
            "prune", checkpoint, "--data", text, "--out", tmp_path / "o", "--recipe", recipe, *more
        )
    assert drawn == [7, 3]


@pytest.mark.parametrize(
    "harm", ["none", "cut", "other width", "no number", "no config", "few tokens"]
)
def test_a_damaged_checkpoint_is_named(checkpoint, text, tmp_path, harm):
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    settings = json.loads(config.read_text())
    if harm == "none":
        weights.unlink()
    elif harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "no config":
        config.write_text("[1]")
    elif harm == "few tokens":
        small = make_llama(vocab_size=20)
        small.save_pretrained(checkpoint)
    else:
        settings["intermediate_size"] = 40 if harm == "other width" else "many"
        config.write_text(json.dumps(settings))
    out = tmp_path / "out"
    result = call("prune", checkpoint, "--data", text, "--out", out, "--ratio", 0.2, *FAST)
    assert isinstance(result.exception, CheckpointError | CalibrationError), result.exception
    assert "\n" not in str(result.exception) and not out.exists()


def test_a_model_that_cannot_be_exported_is_still_pruned(checkpoint, text, tmp_path, monkeypatch):
    def fail(source, out):
        raise RuntimeError(f"{source} is\ntoo large.")

    monkeypatch.setattr(prune_module, "exporter", lambda name: fail)
    out = tmp_path / "out"
    out.mkdir()
    request = ["prune", checkpoint, "--data", text, "--out", out, "--ratio", 0.2, *FAST]
    result = call(*request, "--export", "padded")
    expected = f"{out} holds the pruned model, but not as padded: {out} is too large."
    assert str(result.exception) == expected and isinstance(result.exception, FuncnetError)
    assert AutoModelForCausalLM.from_pretrained(out).config.intermediate_size < 48


def test_a_quantized_model_is_refused_before_its_weights_are_read(checkpoint, text, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "dense"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "model.safetensors").unlink()
    result = call("prune", checkpoint, "--data", text, "--out", tmp_path / "out", "--ratio", 0.2)
    assert "already quantized" in str(result.exception)


def test_help_has_an_example_for_every_command():
    for command in ("demo", "inspect", "prune", "export", "tasks"):
        result = call(command, "--help")
        assert result.exit_code == 0 and f"funcnet {command}" in result.output
    assert call("--version").output.startswith("funcnet 0.")


def test_the_same_call_twice_keeps_the_same_neurons(checkpoint, text, tmp_path):
    states = []
    for out in ("a", "b"):
        call("prune", checkpoint, "--data", text, "--out", tmp_path / out, "--ratio", 0.2, *FAST)
        states.append(AutoModelForCausalLM.from_pretrained(tmp_path / out).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_comparison_in_which_nothing_was_pruned_fails(checkpoint, text, texts, tmp_path):
    (tmp_path / "other.txt").write_text(" ".join(texts[:3]))
    words = f"--text other={tmp_path}/other.txt --method random --ratio 0.9 --window 40 --samples 8"
    result = call("compare", checkpoint, "--data", text, "--out", tmp_path / "o", *words.split())
    assert "no method could prune" in str(result.exception)
    assert "leaves nothing to cut" in (tmp_path / "o" / "table.md").read_text()
