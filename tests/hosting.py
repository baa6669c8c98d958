"""Running llm-compressor's `oneshot` in tests, and loading what it saved without this package."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import loguru
import torch
import yaml
from compressed_tensors.offload import offload_module, remove_dispatch
from datasets import Dataset
from llmcompressor import oneshot
from torch.utils.data import DataLoader

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import read_kept
from funcnet_plugin.text.windows import make_loader, token_windows
from tests.conftest import make_tokenizer

FIELDS = {"pruning_ratio": 0.2, "align": 4, "repair": "none"}
NETWORKS = {"n_components": 6, "samples_per_group": 8}
CANICA = {"n_init": 1}
IDS = torch.randint(3, 32, (2, 30), generator=torch.Generator().manual_seed(5))
WITHOUT_US = os.environ | {"FUNCNET_AUTOLOAD": "0"}


def networks(canica: dict | None = None, **parameters) -> dict:
    """The scorer of functional networks, small enough for the models made here."""
    decomposer = {"name": "canica"} | CANICA | (canica or {})
    return {"name": "networks"} | NETWORKS | {"decomposer": decomposer} | parameters


def recipe(name="FunctionalNetworkModifier", then: dict | None = None, **fields) -> str:
    """A recipe with one pruning modifier and, after it, the modifiers of `then`."""
    base = dict(FIELDS)
    if name == "FunctionalNetworkModifier":
        base["scorer"] = networks()
    stage = {"p_modifiers": {name: base | fields}}
    if then:
        stage["q_modifiers"] = then
    return yaml.safe_dump({"t_stage": stage}, sort_keys=False)


def loader(texts, samples=20, window=40, batch_size=1) -> DataLoader:
    windows = token_windows(texts, make_tokenizer(), window=window, samples=samples, seed=0)
    return make_loader(windows, batch_size)


@contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile, line by line."""
    lines: list[str] = []
    handler = loguru.logger.add(lines.append, format="{message}")
    try:
        yield lines
    finally:
        loguru.logger.remove(handler)


def offload_layers(model, device, **options) -> None:
    """As llm-compressor leaves a model that does not fit: used on the CPU, kept elsewhere."""
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            offload_module(module, "cpu", device, **options)


def as_dataset(loader: DataLoader) -> Dataset:
    """Its samples as a tokenised dataset, which llm-compressor samples itself."""
    rows = [{key: value[0].tolist() for key, value in batch.items()} for batch in loader]
    return Dataset.from_list(rows)


def run(model, texts, recipe_text=None, batch_size=1, **options):
    try:
        pruned = oneshot(
            model=model,
            recipe=recipe_text or recipe(),
            dataset=options.pop("dataset", None) or loader(texts, batch_size=batch_size),
            tokenizer=make_tokenizer(),
            **options,
        )
    finally:
        if isinstance(model, torch.nn.Module):  # where it failed, too
            back_on_the_cpu(model)
    return back_on_the_cpu(pruned)


def back_on_the_cpu(model):
    """With a GPU, llm-compressor leaves a model there; tests compare on the CPU."""
    if torch.cuda.is_available():
        remove_dispatch(model).to("cpu")
    return model


@torch.no_grad()
def kept_by_effect(model, batches, width: int) -> list[list[int]]:
    """Per layer the neurons of largest effect, `scorer: effect`, all measured on this model."""
    blocks = bind(model).blocks
    seen = {block.index: [] for block in blocks}
    hooks = [
        block.output.register_forward_pre_hook(
            lambda module, args, i=block.index: seen[i].append(args[0].flatten(0, -2))
        )
        for block in blocks
    ]
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    kept = []
    for block in blocks:
        variance = torch.cat(seen[block.index]).double().var(0, correction=0)
        effect = variance * block.down.weight.double().square().sum(0)
        kept.append(sorted(effect.topk(width).indices.tolist()))
    return kept


def kept_of(model, folder: Path) -> list[list[int]]:
    """Per layer the neurons that a run kept, as its checkpoint says."""
    model.save_pretrained(folder)
    return read_kept(folder)[1]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def reload_without_us(path: Path, **options) -> torch.Tensor:
    """The logits of a checkpoint, loaded in a process that does not know this package."""
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(path)!r}, **{options!r})\n"
        "with torch.no_grad():\n"
        f"    logits = model(torch.tensor({IDS.tolist()})).logits\n"
        "assert 'funcnet_plugin' not in sys.modules\n"
        f"torch.save(logits, {str(path / 'logits.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=WITHOUT_US)
    return torch.load(path / "logits.pt")
