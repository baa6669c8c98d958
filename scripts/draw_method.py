"""Draws the figure of docs/method.md from the demo model and its atlas.

python scripts/draw_method.py demo-output/atlas docs/method.png [--networks L0.N19 ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from funcnet_plugin.adapters import bind
from funcnet_plugin.atlas.atlas import Atlas
from funcnet_plugin.atlas.files import read_atlas
from funcnet_plugin.demo.run import MODEL
from funcnet_plugin.demo.skills import documents

TOKENS, NEURONS = 60, 120  # that are shown
KEPT = 0.7  # of the neurons, in the last panel


def signals(layer: int) -> Tensor:
    """Run the demo model over its text; what enters the down projection, (tokens, width)."""
    model, tokenizer = (c.from_pretrained(MODEL) for c in (AutoModelForCausalLM, AutoTokenizer))
    seen: list[Tensor] = []
    down = bind(model).blocks[layer].output
    hook = down.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].float()))
    with torch.no_grad():
        for text in documents(8, seed=0, split="train"):
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=128))
    hook.remove()
    return torch.cat(seen)


def whole_map(atlas: Atlas, name: str, layer: int) -> Tensor:
    """Give the entries of a map that the atlas keeps, (width,), 0 where it keeps none."""
    entries = atlas.entries(name)
    found = torch.zeros(atlas.widths[layer])
    here = (entries.layer == layer) & (entries.signal == 0)
    found[entries.neuron[here]] = entries.z[here]
    return found


def draw(atlas: Atlas, names: Sequence[str], path: Path) -> None:
    """Draw signals, maps, and scores of the first layer that the networks are of."""
    layer = atlas.network(names[0]).layers[0]
    of_neurons = signals(layer)
    maps = torch.stack([whole_map(atlas, name, layer) for name in names])
    # members of the networks first: what acts together then stands together
    order = torch.cat([m.abs().argsort(descending=True)[: NEURONS // len(maps)] for m in maps])
    order = torch.tensor(list(dict.fromkeys(order.tolist())))
    shown = (of_neurons - of_neurons.mean(0)) / of_neurons.std(0)
    scores = atlas.scores[layer].sort(descending=True).values
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    style = {"cmap": "RdBu_r", "aspect": "auto", "interpolation": "nearest"}
    panels[0].imshow(shown[:TOKENS, order], vmin=-3, vmax=3, **style)
    panels[0].set(title="1. Signals", xlabel=f"{len(order)} neurons", ylabel=f"{TOKENS} tokens")
    image = panels[1].imshow(maps[:, order], vmin=-6, vmax=6, **style)
    panels[1].set(title="2. Networks", xlabel="the same neurons")
    panels[1].set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=panels[1], label="standard deviations")
    kept = round(KEPT * len(scores))
    panels[2].fill_between(range(kept), scores[:kept], label=f"kept, {KEPT:.0%}")
    panels[2].fill_between(range(kept - 1, len(scores)), scores[kept - 1 :], label="cut")
    panels[2].set(title="3. Scores, and a cut", xlabel="all neurons of the layer", ylabel="score")
    panels[2].legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("atlas", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", help="of one layer; its six strongest by default")
    args = parser.parse_args()
    atlas = read_atlas(args.atlas)
    names = args.networks or [network.name for network in atlas.blocks["L0"][:6]]
    draw(atlas, names, args.out)


if __name__ == "__main__":
    main()
