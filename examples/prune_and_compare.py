"""Prunes a model with two recipes and compares the perplexity of text that it did not see.

    python examples/prune_and_compare.py
"""

import sys
import tempfile
from pathlib import Path

from common import MODEL, text

from funcnet_plugin import prune, read_block
from funcnet_plugin.evaluation import perplexities
from funcnet_plugin.recipe import read_recipe, recipe_path


def main(out: Path) -> None:
    data, test = text(out / "train.jsonl", "train"), text(out / "test.jsonl", "test")
    for name in ("prune_fast", "ica_prune"):
        recipe = read_recipe(recipe_path(name))
        prune(MODEL, [str(data)], out / name, recipe=recipe, overrides={"pruning_ratio": 0.3},
              samples=48, window=128)  # fmt: skip
        block = read_block(out / name)
        print(f"{name}: widths {block['kept_widths']}, {block['pruning_ratio_reached']:.3f} removed")
    print(test, perplexities)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else folder))
