"""Measures the most memory that runs take, each in a process of its own; prints JSON.

The processes are forks of one that has pruned something small already: what libraries keep from
their first use is not what a run needs. Started by test_memory.py.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path

import psutil
import torch
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM

from funcnet_plugin.measure.free_memory import free_memory
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.preflight import needed_memory
from funcnet_plugin.recipe import load_recipe
from funcnet_plugin.text.windows import make_loader
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import networks, recipe

WORK = Workload(samples=16, length=256)
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
}
NETWORKS = networks(n_components=16)
RECIPES = {
    "least squares": recipe(scorer=[NETWORKS, "effect"], repair="least_squares", align=128),
    "distillation": recipe(
        "WidthPruningModifier", scorer="effect", repair="distillation", align=128
    ),
    "heads": recipe(
        "WidthPruningModifier", scorer="effect", repair="none", align=128, heads_ratio="auto"
    ),
    "gradients": recipe(
        "WidthPruningModifier", scorer="loss_effect", repair="none", align=128, ratio_scope="mlp"
    ),
    "networks": recipe(scorer=NETWORKS, repair="none", align=128),
    "atlas": recipe(scorer=NETWORKS, repair="none", align=128, atlas="ATLAS"),
}


# Logits are what a loss takes most of, where the vocabulary is as large as those of real models.
SHAPES = {"gradients": SHAPE | {"vocab_size": 32768}}


def prune(text: str, model: Path, work: Workload) -> None:
    ids = torch.randint(3, 32, (work.samples, work.length))
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(model),
        recipe=text.replace("ATLAS", str(model / "atlas")),
        dataset=make_loader(ids, None),
        tokenizer=make_tokenizer(),
        output_dir=str(model / "pruned"),
    )


def saved(folder: str, **shape: float) -> Path:
    make_llama(**shape).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    gc.collect()
    return Path(folder)


def warm_up() -> None:
    small = networks(n_components=4)
    with tempfile.TemporaryDirectory() as folder:
        text = recipe(scorer=[small, "effect"], repair="least_squares", atlas="ATLAS")
        prune(text, saved(folder), Workload(8, 40))
    square = torch.randn(1500, 1500)
    double = square.double() @ square.double().T + 1500 * torch.eye(1500)
    torch.linalg.cholesky(double)
    torch.linalg.eigh(double[:400, :400])
    torch.linalg.qr(double[:, :100])
    _ = square @ square


def measure(text: str, shape: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = saved(folder, **shape)
        free = free_memory()
        stages, _ = needed_memory(model, load_recipe(text), WORK, gpu=False, free=free)
        before = psutil.Process().memory_info().rss
        prune(text, model, WORK)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    needed = {stage.name: stage.host for stage in stages}
    print("\n" + json.dumps({"measured": peak - before, "needed": needed}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    for name in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            try:
                measure(RECIPES[name], SHAPES.get(name, SHAPE))
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(child, 0)
