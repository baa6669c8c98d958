"""The hosts' own commands in an environment where nobody imports us, away from the source tree."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

# The demo model of the installed package: 4 layers of width 512.
MODEL = "import funcnet_plugin.demo as d, pathlib; print(pathlib.Path(d.__path__[0]) / 'model')"
ONESHOT = """
import sys
from datasets import load_dataset
from llmcompressor import oneshot
oneshot(
    model=sys.argv[1], recipe=sys.argv[2], output_dir=sys.argv[3],
    dataset=load_dataset("json", data_files=sys.argv[4], split="train"),
    num_calibration_samples=48, max_seq_length=64,
)
assert "funcnet_plugin.hosts.llmcompressor.modifiers" in sys.modules
"""
LOAD = """
import json, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(json.dumps([layer.mlp.down_proj.in_features for layer in model.model.layers]))
"""
NETWORKS = {
    "name": "networks", "n_components": 16, "samples_per_group": 20,
    "decomposer": {"name": "canica", "n_init": 1},
}  # fmt: skip
PRUNING = {"pruning_ratio": 0.2, "scorer": NETWORKS, "align": 32}
GPTQ = {
    "GPTQModifier": {
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                    "group_size": 32,
                },
            }
        },
    }
}  # fmt: skip


@pytest.fixture
def shell(wheel, tmp_path):
    """Run an executable of the environment in an empty directory."""

    def run(program: str, *arguments: object, fails: bool = False, **env: str) -> str:
        done = subprocess.run(
            [wheel / program, *map(str, arguments)],
            capture_output=True, text=True, cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | env,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + (done.stderr if fails else "")

    return run


@pytest.fixture
def model(shell) -> Path:
    return Path(shell("python", "-c", MODEL).strip())


@pytest.fixture
def text(tmp_path) -> Path:
    from funcnet_plugin.demo.skills import documents

    path = tmp_path / "text.jsonl"
    rows = documents(120, seed=3, split="train")
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def recipe(path: Path, then: dict | None = None, **fields) -> Path:
    stage = {"pruning_modifiers": {"FunctionalNetworkModifier": PRUNING | fields}}
    if then:
        stage["quantization_modifiers"] = then
    path.write_text(yaml.safe_dump({"s_stage": stage}, sort_keys=False))
    return path


def test_prune_quantize_load_and_score_with_stock_commands(shell, model, text, tmp_path):
    """Per-layer widths and GPTQ in one recipe, then everything a user would do with the result."""
    both = recipe(tmp_path / "both.yaml", then=GPTQ, allocation="threshold")
    shell("python", "-c", ONESHOT, model, both, "pruned", text)
    widths = json.loads(shell("python", "-c", LOAD, "pruned").splitlines()[-1])
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["functional_network"]["kept_widths"] == widths and len(set(widths)) > 1
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"

    shell("funcnet", "tasks", "--out", "tasks", "--text", f"own={text}")
    common = ("--model_args", "pretrained=pruned,dtype=float32", "--device", "cpu",
              "--include_path", "tasks", "--tasks", "own", "--limit", "4")  # fmt: skip
    tables = [
        shell("lm_eval", "--model", "funcnet", *common),
        shell("lm_eval", "--model", "hf", *common),
    ]
    rows = [[line for line in table.splitlines() if "perplexity" in line] for table in tables]
    assert len(rows[0]) == 2 and rows[0] == rows[1]


def test_optimum_cli(shell, model, text, tmp_path):
    small = recipe(tmp_path / "small.yaml")
    shape = json.loads(shell("optimum-cli", "funcnet", "inspect", model, "--json"))
    assert shape["widths"] == [512] * 4
    shell("optimum-cli", "funcnet", "prune", model, "--data", text, "--out", "out",
          "--recipe", small, "--samples", 40, "--window", 64)  # fmt: skip
    assert json.loads(shell("python", "-c", LOAD, "out").splitlines()[-1]) == [384] * 4


def test_the_switch_hides_us_from_llm_compressor(shell, model, text, tmp_path):
    off = shell(
        "python", "-c", ONESHOT, model, recipe(tmp_path / "r.yaml"), "out", text,
        fails=True, FUNCNET_AUTOLOAD="0",
    )  # fmt: skip
    assert "FunctionalNetworkModifier" in off
    assert not (tmp_path / "out").exists()


def test_the_wheel_brings_recipes_tasks_and_the_demo(wheel, tmp_path):
    code = (
        "from pathlib import Path; import funcnet_plugin, sys\n"
        "root = Path(funcnet_plugin.__file__).parent\n"
        "assert Path(sys.prefix) in root.parents, root\n"
        "print(sorted(p.stem for p in root.glob('recipes/*.yaml')))\n"
        "print(*[p.name for p in root.glob('tasks/*.yaml')])\n"
    )
    done = subprocess.run(
        [wheel / "python", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    kinds = ("", "_fp8", "_gptq", "_paper", "_w8a8")
    recipes = [*(f"ica_prune{kind}" for kind in kinds), "prune_best", "prune_fast"]
    assert done.stdout == f"{recipes}\nfuncnet_paper.yaml\n"
    listed = subprocess.run(
        [wheel / "python", "-c", "import tests"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "No module named 'tests'" in listed.stderr
