"""Prunes a model with two recipes and compares what they lose on text that neither saw.

python examples/prune_and_compare.py
"""

import tempfile
from pathlib import Path

from common import MODEL, text
from transformers import AutoTokenizer

from funcnet_plugin import prune
from funcnet_plugin.evaluation.perplexity import perplexities, text_windows
from funcnet_plugin.recipe import recipe_path


def main(folder: Path) -> None:
    data, test = text(folder / "train.jsonl", "train"), text(folder / "test.jsonl", "test")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    windows = {"test": text_windows(test, "text", tokenizer, length=128, count=32)}
    dense = perplexities(MODEL, windows).by_text["test"]
    print(f"dense: perplexity {dense:.3f}")
    for recipe in ("prune_fast", "ica_prune"):
        file = recipe_path(recipe)
        block = prune(
            MODEL, data, folder / recipe, recipe=file, ratio=0.3, overrides={"align": 32},
            samples=64, window=128,
        )  # fmt: skip
        found = perplexities(folder / recipe, windows).by_text["test"]
        gone = block["pruning_ratio_reached"]
        print(f"{recipe}: {100 * gone:.1f}% of the parameters gone, perplexity {found:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
