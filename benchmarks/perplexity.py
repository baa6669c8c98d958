"""Token perplexity on several texts after pruning, for each ratio and compensation.

    python benchmarks/perplexity.py MODEL --data CALIBRATION.jsonl --text A.jsonl --text B.jsonl

Convention: documents are tokenised as the tokenizer does it, joined, and cut into windows; the
perplexity is exp of the mean negative log-likelihood of all tokens but the first of each window,
over the first `--windows` windows of a text. One table in Markdown; "gm" is the geometric mean of
the ratios to the dense model over all texts.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.calibration import load_texts
from funcnet_plugin.inspect import load_tokenizer
from funcnet_plugin.prune import prune

COMPENSATIONS = ("none", "bias", "least_squares")


@torch.no_grad()
def token_perplexity(checkpoint: Path | str, windows: torch.Tensor) -> float:
    """windows: (n, length) int64. Computed in float32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    total = 0.0
    for batch in windows.split(16):
        logits = model(batch[:, :-1]).logits.float()
        total += float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            )
        )
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def text_windows(path: Path, column: str, tokenizer, length: int, count: int) -> torch.Tensor:
    """The first `count` windows, in order."""
    tokens = [t for ids in tokenizer(load_texts(path, column))["input_ids"] for t in ids]
    count = min(count, len(tokens) // length)
    return torch.tensor(tokens[: count * length]).view(count, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--text", action="append", type=Path, required=True, help="test text")
    parser.add_argument("--column", default="text", help="field of a record that holds the text")
    parser.add_argument("--ratio", action="append", type=float)
    parser.add_argument("--set", action="append", default=[], help="recipe field, FIELD=VALUE")
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--window", type=int, default=256, help="tokens, calibration and test")
    parser.add_argument("--windows", type=int, default=64, help="test windows per text")
    args = parser.parse_args()

    from funcnet_plugin.cli import recipe_fields

    tokenizer = load_tokenizer(args.model)
    texts = {
        path.stem: text_windows(path, args.column, tokenizer, args.window, args.windows)
        for path in args.text
    }
    dense = {name: token_perplexity(args.model, windows) for name, windows in texts.items()}
    print(f"| ratio | reached | compensation | {' | '.join(texts)} | gm |")
    print("|---" * (len(texts) + 4) + "|")
    print("| 0 | 0 | - |", " | ".join(f"{dense[n]:.2f}" for n in texts), "| 1.000 |", flush=True)
    for ratio in args.ratio or (0.1, 0.2, 0.3):
        for compensation in COMPENSATIONS:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "pruned"
                fields = recipe_fields(args.set) | {"compensation": compensation}
                block = prune(
                    args.model, args.data, out, ratio=ratio, overrides=fields,
                    samples=args.samples, window=args.window, text_column=args.column,
                )  # fmt: skip
                found = {n: token_perplexity(out, windows) for n, windows in texts.items()}
            gm = math.exp(sum(math.log(found[n] / dense[n]) for n in texts) / len(texts))
            print(
                f"| {ratio} | {block['pruning_ratio_reached']:.4f} | {compensation} |",
                " | ".join(f"{found[n]:.2f}" for n in texts),
                f"| {gm:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
