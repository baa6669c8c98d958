"""What a type checker makes of the public names: right calls pass, and wrong ones are found."""

import os
import re
import subprocess
import sys

import pytest

import funcnet_plugin
from tests.pages import ROOT

RIGHT = """
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from typing_extensions import assert_type

import funcnet_plugin
from funcnet_plugin import (
    Decomposer, FuncnetError, FunctionalNetworkModifier, MLPAdapter, Repair, Scorer,
    WidthPruningModifier, bind, canica, fastica, hookimpl, prune, read_block,
)
from funcnet_plugin.adapters import ModelLayout
from funcnet_plugin.ica import Decomposition, ICAResult
from funcnet_plugin.repair.repair import Cut, Repaired
from funcnet_plugin.score.scorer import Evidence


class Peak(Scorer):
    name = "peak"
    needs = frozenset({"moments"})
    deviations: float = 3.0

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.moments.mean + self.deviations * evidence.moments.variance.sqrt()


class Halve(Repair):
    name = "halve"

    def repaired(self, cut: Cut) -> Repaired:
        return Repaired(cut.unit.output_weight[:, cut.keep] / 2)


class Again(Decomposer):
    name = "again"

    def rotate(self, white: Tensor, seed: int) -> ICAResult:
        return fastica(white, n_init=2, seed=seed)


@hookimpl
def funcnet_scorers() -> Iterable[type[Scorer]]:
    return [Peak]


@hookimpl
def funcnet_adapters() -> list[MLPAdapter]:
    return [MLPAdapter("mine", ("MyForCausalLM",), gate=None)]


def run(model: nn.Module, signals: Tensor) -> None:
    assert_type(funcnet_plugin.__version__, str)
    try:
        assert_type(prune("llama", "wiki.jsonl", "llama-20", ratio=0.2), dict[str, Any])
        prune("llama", ["one", "two"], "llama-20", recipe="prune_fast", overrides={"align": 64})
        prune("llama", {"wiki.jsonl": 0.7, "plays.jsonl": 0.3}, "llama-20", samples=64)
    except FuncnetError as error:
        assert_type(str(error), str)
    assert_type(read_block("llama-20"), dict[str, Any] | None)
    assert_type(bind(model), ModelLayout)
    found = canica(signals, 16, solver="fastica", n_init=4)
    assert_type(found, Decomposition)
    assert_type(found.maps, Tensor)
    assert_type(fastica(signals).W, Tensor)
    FunctionalNetworkModifier(pruning_ratio=0.2, scorer={"name": "networks", "n_components": 32})
    WidthPruningModifier(pruning_ratio=0.2, scorer=["surgeon", "flap"], align="auto")
    Peak(deviations=2.0)
"""
# Behind each mistake stands how mypy calls it.
WRONG = """
from torch import Tensor

import funcnet_plugin
from funcnet_plugin import (
    Decomposer, FuncnetError, FunctionalNetworkModifier, MLPAdapter, Repair, Scorer,
    WidthPruningModifier, bind, canica, fastica, hookimpl, prune, read_block,
)
from funcnet_plugin import nothing  # attr-defined
from funcnet_plugin.ica import ICAResult
from funcnet_plugin.repair.repair import Cut
from funcnet_plugin.score.scorer import Evidence

funcnet_plugin.also_nothing  # attr-defined
prune(model=3, data="wiki.jsonl", out="llama-20")  # arg-type
prune("llama", "wiki.jsonl")  # call-arg
prune("llama", "wiki.jsonl", "llama-20", ratios=0.2)  # call-arg
prune("llama", "wiki.jsonl", "llama-20", ratio=0.2).widths  # attr-defined
read_block(20)  # arg-type
bind("llama")  # arg-type
canica("signals", 16)  # arg-type
canica(Tensor(), 16).networks  # attr-defined
fastica(Tensor(), n_init="many")  # arg-type
MLPAdapter("mine", "MyForCausalLM")  # arg-type
hookimpl(1)  # call-overload
WidthPruningModifier(pruning_ratio="a fifth")  # arg-type
FunctionalNetworkModifier(ratio=0.2)  # call-arg
error: int = FuncnetError("no")  # assignment


class Peak(Scorer):
    deviations: float = 3.0

    def score(self, evidence: Evidence) -> str:  # override
        return "peak"


class Halve(Repair):
    def repaired(self, cut: Cut) -> Tensor:  # override
        return cut.keep


class Again(Decomposer):
    def rotate(self, white: Tensor, seed: str) -> ICAResult:  # override
        return fastica(white)


Peak(deviations="three")  # arg-type
"""
FOUND = re.compile(r"^(\w+)\.py:(\d+): error: (.*?)(?:  \[([\w-]+)\])?$", re.MULTILINE)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[tuple[int, str]]]:
    """The mistakes that mypy finds in both scripts: lines, from 1, and what it calls them."""
    folder = tmp_path_factory.mktemp("types")
    scripts = {"right": RIGHT, "wrong": WRONG}
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(text)
    options = ("--strict", "--follow-imports=silent", "--no-error-summary")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", ROOT / ".mypy_cache",
         *(f"{name}.py" for name in scripts)],
        cwd=folder, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    errors = FOUND.findall(done.stdout)
    assert errors, done.stdout + done.stderr
    return {
        name: [(int(line), code) for file, line, _, code in errors if file == name]
        for name in scripts
    }


def test_the_package_says_that_it_has_types():
    assert (ROOT / "funcnet_plugin" / "py.typed").exists()


def test_right_calls_pass(found):
    assert found["right"] == []


def test_wrong_calls_are_found(found):
    said = enumerate(WRONG.splitlines(), start=1)
    assert found["wrong"] == [(n, line.split("# ")[1]) for n, line in said if "# " in line]


@pytest.mark.parametrize("script", [RIGHT, WRONG])
def test_no_public_name_is_left_out(script):
    used = set(re.findall(r"\w+", script.replace("from funcnet_plugin import nothing", "")))
    assert used >= set(funcnet_plugin.__all__) - {"__version__"}
