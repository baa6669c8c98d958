"""Every example runs, and says at its end what it is there to say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "prune_and_compare.py": "of the parameters gone, perplexity",
    "networks_of_a_model.py": "% of the variance of its layer",
    "prune_and_quantize.py": "W4A16 in groups of 64",
}


def run(*command) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=EXAMPLES, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SAYS)
def test_a_script_runs(name):
    assert SAYS[name] in run(name)


def test_no_script_is_forgotten():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, "common.py"}


def test_the_notebook_runs():
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = run("-c", code)
    assert "LlamaForCausalLM" in found and "llama.cpp       after export    gguf" in found
