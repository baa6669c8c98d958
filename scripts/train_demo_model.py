"""Train the demo model that ships in funcnet_plugin/demo/model, from nothing.

    python scripts/train_demo_model.py --output funcnet_plugin/demo/model

Text: `funcnet_plugin.demo.skills`, generated, training side only. Tokens are characters, so the
prompt and the answer never share a token. The model card that is written says how long it took and
what was reached. Same seed, same machine: the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from funcnet_plugin.demo.skills import DIGITS, LETTERS, SKILLS, documents, examples

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SYMBOLS = " \n" + LETTERS + DIGITS + "()[]{}+=:"
LENGTH = 128  # tokens per training sequence, about five lines
PROMPT_WEIGHT = 0.15  # prompts are random; learning their distribution is not what is tested


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: i for i, symbol in enumerate((*SPECIAL, *SYMBOLS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def batches(tokenizer, batch: int, seed: int):
    """Endless (ids, weights): (batch, LENGTH + 1) int64 and (batch, LENGTH) float32."""
    ends = {tokenizer.convert_tokens_to_ids(":"), tokenizer.convert_tokens_to_ids("=")}
    newline = tokenizer.convert_tokens_to_ids("\n")
    rng = random.Random(seed)
    while True:
        ids, weights = [], []
        for text in documents(batch, rng.randrange(2**31), "train", lines=20):
            row = tokenizer(text)["input_ids"][: LENGTH + 1]
            weight, last = [0.0] * len(row), 0
            # the answer starts after the last ':' or '=' of its line and ends with the newline
            for i, token in enumerate(row):
                weight[i] = PROMPT_WEIGHT
                if token in ends:
                    last = i
                if token == newline:
                    weight[last + 1 : i + 1] = [1.0] * (i - last)
            ids.append(row)
            weights.append(weight[1:])
        yield torch.tensor(ids), torch.tensor(weights)


@torch.no_grad()
def accuracies(model, tokenizer, n: int) -> dict[str, tuple[float, float]]:
    """Per skill on n test examples: (best of four choices by log-likelihood, greedy exact)."""
    model.eval()
    result = {}
    for skill in SKILLS:
        chosen = exact = 0
        tests = examples(skill, min(n, 96 if SKILLS[skill].memorised else n), seed=1)
        for example in tests:
            prompt = tokenizer(example.prompt)["input_ids"]
            options = [
                tokenizer(c + "\n", add_special_tokens=False)["input_ids"] for c in example.choices
            ]
            width = max(map(len, options))
            rows = torch.tensor([prompt + o + [0] * (width - len(o)) for o in options])
            logp = model(rows).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
            score, greedy = [], []
            for i, option in enumerate(options):
                target = torch.tensor(option)
                score.append(float(logp[i, range(len(option)), target].sum()))
                greedy.append(bool((logp[i, : len(option)].argmax(-1) == target).all()))
            best = max(range(4), key=score.__getitem__)
            chosen += example.choices[best] == example.answer
            exact += greedy[example.choices.index(example.answer)]
        result[skill] = (chosen / len(tests), exact / len(tests))
    model.train()
    return result


def train(args: argparse.Namespace) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden,
            intermediate_size=args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.rate, total_steps=args.steps, pct_start=0.06, final_div_factor=100
    )
    start, stream = time.time(), batches(tokenizer, args.batch, args.seed)
    for step in range(1, args.steps + 1):
        ids, weights = next(stream)
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        loss = (loss * weights.flatten()).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % args.report == 0 or step == args.steps:
            shown = "  ".join(
                f"{k} {c:.2f}" for k, (c, _) in accuracies(model, tokenizer, 40).items()
            )
            print(f"{step:5d}  {time.time() - start:5.0f} s  loss {loss:.3f}  {shown}", flush=True)
            save(model, tokenizer, args.output)
    return model, tokenizer


def save(model, tokenizer, output: Path) -> None:
    """bfloat16, under the names that every transformers version reads."""
    tokenizer.save_pretrained(output)
    path = output / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 has no other name for it
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    copy.tie_weights()
    copy.save_pretrained(output)


def write_card(output: Path, args: argparse.Namespace, seconds: float) -> None:
    """Accuracies of the saved checkpoint, read back by the stock classes."""
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    config, n = model.config, 200
    rows = "\n".join(
        f"| {SKILLS[k].title} | {SKILLS[k].description} | {c:.3f} | {g:.3f} |"
        for k, (c, g) in accuracies(model, tokenizer, n).items()
    )
    (output / "README.md").write_text(
        f"""---
license: apache-2.0
---
# The demo model of funcnet_plugin

A LLaMA of {model.num_parameters():,} parameters ({config.num_hidden_layers} layers, hidden
{config.hidden_size}, width {config.intermediate_size}, tied embeddings, characters as tokens,
bfloat16), trained from scratch by `scripts/train_demo_model.py` on text it generates itself:
{args.steps} steps of {args.batch} x {LENGTH} tokens, {seconds / 60:.0f} minutes on two CPU cores.

| skill | what | best of four | greedy exact |
|---|---|---|---|
{rows}

Test prompts that were not in training, {n} per skill (Facts: all 96, memorised). "Best of four":
the answer has the largest log-likelihood of four choices, chance 0.25. "Greedy exact": the greedy
continuation is the answer and the end of the line.
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=500)
    args = parser.parse_args()
    start = time.time()
    train(args)
    write_card(args.output, args, time.time() - start)


if __name__ == "__main__":
    main()
