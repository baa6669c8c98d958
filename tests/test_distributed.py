"""Two processes prune like one on the same groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.pruning.processes import Processes
from tests.conftest import make_llama
from tests.distributed_run import sampled
from tests.hosting import loader, logits, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
ROOT = Path(__file__).parents[1]


def torchrun(folder: Path, kind: str, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tests.distributed_run", str(folder), kind],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stderr


def prepare(folder: Path, texts, fields, samples=20) -> None:
    model = make_llama(mlp_bias=fields.get("compensation") == "bias")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    model.save_pretrained(folder / "model")
    (folder / "cache").mkdir()
    job = {"texts": texts, "fields": fields, "samples": samples}
    (folder / "job.json").write_text(json.dumps(job))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("loader", {"aggregate": "max", "compensation": "least_squares"}),
        ("offloaded", {"score": "union", "compensation": "least_squares"}),
        ("loader", {"allocation": "threshold", "compensation": "residual_least_squares"}),
        ("offloaded", {"compensation": "residual_least_squares"}),
        ("loader", {"compensation": "bias"}),
        ("loader", {"union_with": "taylor", "samples_per_group": 4}),
        ("shuffled", {"score": "union", "samples_per_group": 4}),
        ("longest", {"strategy": "global", "allocation": "threshold", "samples_per_group": 4}),
    ],
)
def test_two_processes_prune_like_one(texts, tmp_path, kind, fields):
    prepare(tmp_path, texts, fields)
    torchrun(tmp_path, kind)
    options = {}
    if kind not in ("loader", "offloaded"):
        options = sampled(texts, kind == "shuffled")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    one = run(model, texts, recipe(**fields), **options)
    expected = one.state_dict()
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1)]
    for widths, state in ranks:
        assert widths == one.config.functional_network["kept_widths"]
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(saved), logits(one), atol=1e-4, rtol=1e-4)
    measured = saved.config.functional_network["measured"]
    assert measured["samples"] == one.config.functional_network["measured"]["samples"] == [20] * 3
    assert measured["groups"] == one.config.functional_network["measured"]["groups"]


def test_two_processes_reconstruct_together(texts, tmp_path):
    """Steps are of other tokens than one process takes, and so is what each writes: weights are
    those of all processes and near those of one, not equal."""
    fields = {"compensation": "reconstruction", "reconstruction_epochs": 2, "continuations": 1}
    prepare(tmp_path, texts, fields, samples=150)
    torchrun(tmp_path, "offloaded")
    (widths, first), (_, second) = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    one = run(model, texts, recipe(**fields), dataset=loader(texts, samples=150))
    expected = one.config.functional_network
    assert widths == expected["kept_widths"]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.functional_network
    names = ("error", "error_before_reconstruction")
    for name in names:
        assert found["measured"][name] == pytest.approx(expected["measured"][name], rel=0.2)
    after, before = (found["measured"][name] for name in names)
    assert all(a < b for a, b in zip(after, before, strict=True))  # the fit was used


def test_fewer_groups_than_processes_are_refused(texts, tmp_path):
    prepare(tmp_path, texts, {"samples_per_group": 20})
    message = torchrun(tmp_path, "loader", fails=True)
    assert "20 samples make 1 groups of 20, too few for 2 processes" in message


def test_whole_groups_go_around_and_the_rest_to_the_last():
    shares = [Processes(rank, 3).my_samples(23, 5) for rank in range(3)]
    assert shares[0] == [*range(5), *range(15, 20)]
    assert shares[1] == [*range(5, 10)]
    assert shares[2] == [*range(10, 15), 20, 21, 22]
