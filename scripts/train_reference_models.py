"""Train small models of other shapes to measure on, so that no result rests on one model.

    python scripts/train_reference_models.py deep --teacher ref-llama --output deep \
        --text wikitext-2/valid.jsonl --text domains/bible.jsonl --text-column page
    python scripts/train_reference_models.py ungated ...

`deep`: a LLaMA of ten narrow layers. `ungated`: a GPT-NeoX of six layers, whose MLPs have no gate
and run beside the attention. Both learn from a teacher with the same tokenizer: half of the
text is what the teacher writes, half is read from files, and the targets are the teacher's
probabilities and what stands there, in equal parts. The embeddings start as the teacher's. `same`:
the teacher itself, taught new text so. A card says what was reached. Same seed, same machine: the
same weights.
"""

from __future__ import annotations

import argparse
import shutil
import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from funcnet_plugin.text.sources import load_texts

LENGTH = 128  # tokens per training sequence
WRITTEN_AT_ONCE = 256  # sequences


def new_model(shape: str, teacher: PreTrainedModel) -> PreTrainedModel:
    if shape == "same":
        return deepcopy(teacher).train()
    vocabulary, hidden = teacher.get_input_embeddings().weight.shape
    common = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": teacher.config.bos_token_id,
        "eos_token_id": teacher.config.eos_token_id,
    }
    if shape == "deep":
        config = LlamaConfig(
            **common, num_hidden_layers=10, intermediate_size=320, num_key_value_heads=4
        )
        model: PreTrainedModel = LlamaForCausalLM(config)
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(**common, num_hidden_layers=6, intermediate_size=1024)
        )
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(teacher.get_input_embeddings().weight)
    return model


@torch.no_grad()
def write(teacher: PreTrainedModel, tokens: int) -> Tensor:
    """(n, LENGTH) int64: what the teacher writes by itself, sampled at temperature 1."""
    rows, start = [], teacher.config.bos_token_id
    while sum(map(len, rows)) * LENGTH < tokens:
        begin = torch.full((WRITTEN_AT_ONCE, 1), start)
        rows.append(
            teacher.generate(
                begin, do_sample=True, top_k=0, min_new_tokens=LENGTH - 1, max_new_tokens=LENGTH - 1
            )
        )
    return torch.cat(rows)


def read(files: list[str], column: str, tokenizer) -> Tensor:
    """(n, LENGTH) int64: the text of the files, every document from its beginning."""
    documents = [text for file in files for text in load_texts(file, column)]
    tokens = [t for ids in tokenizer(documents, verbose=False)["input_ids"] for t in ids]
    n = len(tokens) // LENGTH
    return torch.tensor(tokens[: n * LENGTH]).view(n, LENGTH)


def train(args: argparse.Namespace) -> tuple[PreTrainedModel, list[str]]:
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    model = new_model(args.shape, teacher)
    start = time.time()
    sources = [read(args.text, args.text_column, tokenizer), write(teacher, args.written)]
    print(f"{[tuple(s.shape) for s in sources]} sequences, {time.time() - start:.0f} s", flush=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.rate, total_steps=args.steps, pct_start=0.06, final_div_factor=100
    )
    log = []
    for step in range(1, args.steps + 1):
        half = args.batch // 2
        ids = torch.cat([s[torch.randint(len(s), (half,))] for s in sources])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.autocast):
            with torch.no_grad():
                target = teacher(ids[:, :-1]).logits.float().flatten(0, 1)
            logits = model(ids[:, :-1]).logits.float().flatten(0, 1)
        # half the teacher's probabilities, half what stands there
        loss = 0.5 * nn.functional.kl_div(
            logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean"
        ) + 0.5 * nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % args.report == 0 or step == args.steps:
            log.append(f"{step:5d} steps  {time.time() - start:5.0f} s  loss {float(loss):.3f}")
            print(log[-1], flush=True)
            save(model, args)
    return model, log


def save(model: PreTrainedModel, args: argparse.Namespace) -> None:
    """bfloat16, with the teacher's tokenizer."""
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.tie_weights()
    copy.save_pretrained(args.output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(args.teacher) / name, args.output / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=["deep", "ungated", "same"])
    parser.add_argument("--teacher", required=True, help="checkpoint with its tokenizer")
    parser.add_argument("--text", action="append", required=True, help="may be repeated")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--written", type=int, default=600_000, help="tokens the teacher writes")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--autocast", action="store_true", help="bfloat16, for CPUs that multiply it"
    )
    parser.add_argument("--report", type=int, default=100)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    model, log = train(args)
    (args.output / "TRAINING.md").write_text(
        f"# {args.shape}\n\n{type(model).__name__}, {model.num_parameters():,} parameters, made by "
        f"scripts/train_reference_models.py: {args.steps} steps of {args.batch} x {LENGTH} tokens, "
        f"half of them written by {args.teacher}, half from {', '.join(args.text)}.\n\n"
        + "".join(f"    {line}\n" for line in log)
    )


if __name__ == "__main__":
    main()
