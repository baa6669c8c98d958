"""Two processes prune like one on the same groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.measure.processes import Processes
from tests.conftest import make_llama
from tests.hosting import loader, logits, networks, recipe, run
from tests.measure.distributed_run import sampled

pytestmark = pytest.mark.usefixtures("forget_the_session")
ROOT = Path(__file__).parents[2]


UNION = [networks(), "effect"]
# name -> how the data is given, recipe fields, samples
RUNS = {
    "aggregate": ("loader", {"scorer": networks(aggregate="max"), "repair": "least_squares"}, 20),
    "union": ("offloaded", {"scorer": UNION, "repair": "least_squares"}, 20),
    "threshold": ("loader", {"allocation": "threshold", "repair": "least_squares"}, 20),
    "bias": ("loader", {"repair": "bias"}, 20),
    "heads": (
        "offloaded",
        {"heads_ratio": 0.5, "pruning_ratio": 0.3, "repair": "least_squares"},
        20,
    ),
    "taylor": ("loader", {"scorer": [networks(samples_per_group=4), "taylor"]}, 20),
    "shuffled": (
        "shuffled",
        {"scorer": [networks({"n_init": "auto"}, samples_per_group=4), "effect"]},
        20,
    ),
    "global": (
        "longest",
        {"scorer": networks(strategy="global", samples_per_group=4), "allocation": "threshold"},
        20,
    ),
}
DISTILLATION = {"repair": {"name": "distillation", "epochs": 2, "continuations": 1}}


def prepare(folder: Path, texts, kind: str, fields: dict, samples: int) -> None:
    model = make_llama(mlp_bias=fields.get("repair") == "bias")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    model.save_pretrained(folder / "model")
    (folder / "cache").mkdir()
    job = {"texts": texts, "kind": kind, "fields": fields, "samples": samples}
    (folder / "job.json").write_text(json.dumps(job))


def torchrun(folders: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tests.measure.distributed_run", *map(str, folders)],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_prune_like_one(texts, tmp_path):
    """Every run in one start of two processes, each beside the same run in this process."""
    jobs = RUNS | {
        "distillation": ("offloaded", DISTILLATION, 150),
        "too few": ("loader", {"scorer": networks(samples_per_group=20)}, 20),
    }
    for name, (kind, fields, samples) in jobs.items():
        prepare(tmp_path / name, texts, kind, fields, samples)
    torchrun([tmp_path / name for name in jobs])
    for name, (kind, fields, _) in RUNS.items():
        options = sampled(texts, kind == "shuffled") if kind in ("shuffled", "longest") else {}
        _compare_with_one(tmp_path / name, texts, fields, options)
    names = ("divergence", "divergence_before_distillation")
    _compare_learned(tmp_path / "distillation", texts, DISTILLATION, names)
    for rank in (0, 1):
        message = (tmp_path / "too few" / f"refused-{rank}.txt").read_text()
        assert "20 samples make 1 groups of 20, too few for 2 processes" in message


def _compare_with_one(folder: Path, texts, fields: dict, options: dict) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    one = run(model, texts, recipe(**fields), **options)
    expected = one.state_dict()
    for rank in (0, 1):
        widths, state = torch.load(folder / f"rank-{rank}.pt")
        assert widths == one.config.functional_network["kept_widths"], folder.name
        for name, tensor in state.items():
            torch.testing.assert_close(
                tensor, expected[name], atol=1e-6, rtol=1e-5,
                msg=lambda text, name=name: f"{folder.name}, {name}: {text}",
            )  # fmt: skip
    saved = AutoModelForCausalLM.from_pretrained(folder / "out")
    torch.testing.assert_close(logits(saved), logits(one), atol=1e-4, rtol=1e-4)
    measured = saved.config.functional_network["measured"]
    assert measured["samples"] == one.config.functional_network["measured"]["samples"] == [20] * 3
    for figure in ("groups", "starts"):  # as many starts as for the groups of all processes
        assert measured.get(figure) == one.config.functional_network["measured"].get(figure)


def _compare_learned(folder: Path, texts, fields: dict, names: tuple[str, str]) -> None:
    """Steps are of other tokens than one process takes, and so is what each writes: weights are
    those of all processes and near those of one, not equal."""
    (widths, first), (_, second) = (torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    one = run(model, texts, recipe(**fields), dataset=loader(texts, samples=150))
    expected = one.config.functional_network
    assert widths == expected["kept_widths"]
    found = AutoModelForCausalLM.from_pretrained(folder / "out").config.functional_network
    for name in names:
        assert found["measured"][name] == pytest.approx(expected["measured"][name], rel=0.2)
    after, before = (np.ravel(found["measured"][name]) for name in names)
    assert (after < before).all()  # what was learned was used


def test_whole_groups_go_around_and_the_rest_to_the_last():
    shares = [Processes(rank, 3).my_samples(23, 5) for rank in range(3)]
    assert shares[0] == [*range(5), *range(15, 20)]
    assert shares[1] == [*range(5, 10)]
    assert shares[2] == [*range(10, 15), 20, 21, 22]
