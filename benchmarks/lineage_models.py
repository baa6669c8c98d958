"""Makes the models that lineage.py tells apart: trained from nothing, and derived from another.

A family shares a tokenizer and a text: `characters`, the skills of the demo model; `words`, English
with the tokenizer of a small model that is given; `real`, English with that of a published model,
of which only some are derived and none is trained. Same seeds, same machine: the same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from funcnet_plugin.adapters import bind
from funcnet_plugin.bars import bar
from funcnet_plugin.demo.run import MODEL
from funcnet_plugin.demo.skills import documents
from funcnet_plugin.pruning import prune
from funcnet_plugin.text.sources import load_texts

LENGTH = 128  # tokens of a training sequence
STEPS, BATCH, RATE = 400, {"characters": 16, "words": 8}, 2e-3
TUNED_STEPS, TUNED_RATE = 100, 3e-4
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """Says what the models of one tokenizer read.

    Attributes:
        trained: a model that was trained longer, with the tokenizer of all.
        learn, tune: texts that models are trained on, and tuned on.
        calibrate, survey: files of records with the text in "page", for pruning and for atlases.
    """

    name: str
    trained: Path
    learn: list[str]
    tune: list[str]
    calibrate: Path
    survey: Path


def families(data: Path, model: Path, real: Path | None, folder: Path) -> dict[str, Family]:
    """Put the texts of all families together.

    Args:
        data: see lineage.py.
        model: of the family `words`.
        real: of the family `real`, if there is to be one.
        folder: for the texts that are generated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    skills = {}
    for split in ("train", "test"):
        skills[split] = folder / f"skills-{split}.jsonl"
        lines = [json.dumps({"page": text}) for text in documents(400, seed=0, split=split)]
        skills[split].write_text("\n".join(lines) + "\n")
    c4 = load_texts(str(data / "text" / "c4.jsonl"), "page")[:400]
    wiki = data / "wikitext-2"
    english = [wiki / "valid.jsonl"]
    english += [data / "domains" / f"{name}.jsonl" for name in ("shakespeare", "speeches", "bible")]
    found = [
        Family(
            "characters", MODEL, documents(4000, seed=1, split="train"),
            [re.sub(r"[^a-z0-9 \n]", "", text.lower()) for text in c4],
            skills["train"], skills["test"],
        ),
        Family(
            "words", model, [t for file in english for t in load_texts(str(file), "page")],
            c4, wiki / "valid.jsonl", wiki / "test_a.jsonl",
        ),
    ]  # fmt: skip
    if real is not None:
        found.append(Family("real", real, [], [], wiki / "valid.jsonl", wiki / "test_a.jsonl"))
    return {family.name: family for family in found}


def train_new(family: Family, seed: int, out: Path) -> None:
    """Train a small LLaMA from nothing; the seed decides weights and the order of the text."""
    tokenizer = AutoTokenizer.from_pretrained(family.trained)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE))
    ids = sequences(family.learn, tokenizer)
    loss = learn(model, ids, STEPS, RATE, BATCH[family.name], f"{out.name}: training")
    save(model, family, out)
    (out / "loss.json").write_text(json.dumps({"last_50_steps": loss}))


def sequences(texts: list[str], tokenizer) -> Tensor:
    """(n, LENGTH), int64."""
    tokens = [t for ids in tokenizer(texts, verbose=False)["input_ids"] for t in ids]
    n = len(tokens) // LENGTH
    return torch.tensor(tokens[: n * LENGTH]).view(n, LENGTH)


def learn(
    model: PreTrainedModel, ids: Tensor, steps: int, rate: float, batch: int, title: str
) -> float:
    """Train on sequences drawn at random; gives the mean loss of the last 50 steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, final_div_factor=100
    )
    losses = []
    for _ in bar(range(steps), title, "step"):
        drawn = ids[torch.randint(len(ids), (batch,))]
        loss = model(drawn, labels=drawn).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def save(model: PreTrainedModel, family: Family, out: Path) -> None:
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(family.trained).save_pretrained(out)


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def pruned(source: Path, out: Path, family: Family, ratio: float) -> None:
    """Cut neurons of least effect, and fit the down projections."""
    prune(
        source, str(family.calibrate), out, ratio=ratio, recipe="prune_fast",
        overrides={"align": 8}, samples=64, window=LENGTH, text_column="page",
    )  # fmt: skip


@torch.no_grad()
def quantized(source: Path, out: Path, family: Family, bits: int, group: int | None) -> None:
    """Round the weights of all linear layers but the head to the nearest of 2**bits levels.

    Args:
        group: weights of a row that share a scale; a whole row if None.
    """
    model = load(source)
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            rows = module.weight.view(-1, group or module.in_features)
            scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            rows.copy_((rows / scale).round() * scale)
    save(model, family, out)


def tuned(source: Path, out: Path, family: Family) -> None:
    """Go on training, on other text."""
    model, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
    torch.manual_seed(1000)
    title = f"{out.name}: tuning"
    ids = sequences(family.tune, tokenizer)
    learn(model, ids, TUNED_STEPS, TUNED_RATE, BATCH[family.name], title)
    save(model, family, out)


@torch.no_grad()
def permuted(source: Path, out: Path, family: Family, signs: bool = False) -> None:
    """Put the neurons of every MLP in another order, and scale them; the function stays the same.

    Args:
        signs: scale by negative numbers, too.
    """
    model = load(source)
    generator = torch.Generator().manual_seed(7)
    for unit in bind(model).blocks:
        order = torch.randperm(unit.width, generator=generator)
        scale = 4.0 ** (2 * torch.rand(unit.width, generator=generator) - 1)
        if signs:
            scale *= torch.randint(0, 2, scale.shape, generator=generator) * 2 - 1
        mlp = unit.decoder_layer.mlp
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[order] * scale[:, None])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order] / scale)
    save(model, family, out)


def disguised(source: Path, out: Path, family: Family) -> None:
    """Take the tuned model, prune it, then permute and scale with signs."""
    pruned_too = out.with_name(f"{out.name}-before")
    pruned(out.with_name(out.name.replace("disguised", "tuned")), pruned_too, family, 0.2)
    permuted(pruned_too, out, family, signs=True)


DERIVED: dict[str, Callable[[Path, Path, Family], None]] = {
    "permuted": permuted,
    "pruned 10%": partial(pruned, ratio=0.1),
    "pruned 20%": partial(pruned, ratio=0.2),
    "pruned 30%": partial(pruned, ratio=0.3),
    "int8": partial(quantized, bits=8, group=None),
    "int4": partial(quantized, bits=4, group=32),
    "tuned": tuned,
    "disguised": disguised,
}
# What is derived of a published model, which is not tuned: that would take hours.
OF_REAL = ("permuted", "pruned 20%", "int4")
