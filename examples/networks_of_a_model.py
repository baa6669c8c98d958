"""Finds the functional networks of a model and prints the strongest of each layer.

python examples/networks_of_a_model.py
"""

import tempfile
from pathlib import Path

from common import MODEL, text

from funcnet_plugin.surveying import make_atlas


def main(folder: Path) -> None:
    data = text(folder / "train.jsonl", "train")
    parameters = {"n_components": 16, "signals": ["act", "up"]}
    atlas = make_atlas(MODEL, data, folder / "atlas", parameters=parameters, samples=32, window=128)
    for networks in atlas.blocks.values():
        strongest = networks[0]  # of a block, the strongest comes first
        neurons = len(set(atlas.entries(strongest.name).neuron.tolist()))
        share = 100 * strongest.facts["variance"]
        print(
            f"{strongest.name}: {share:.1f}% of the variance of its layer, "
            f"{neurons} neurons beyond {atlas.cut:g} deviations"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
