"""Says what each network of a block is, in figures and words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.atlas import Network
from funcnet_plugin.atlas.atlas import MEMBER
from funcnet_plugin.measure.text import Text
from funcnet_plugin.survey.blocks import BlockNetworks
from funcnet_plugin.survey.courses import ACTIVE, correlations

_FEW = 0.01  # of a map's energy: layers with less are not listed


@dataclass(frozen=True)
class Tokens:
    """Holds what is known of every token of a text, in its order.

    Attributes:
        ids: (n_tokens,), int64.
        position: (n_tokens,), int64, in its sample.
        frequency: (n_tokens,), float32, the logarithm of how often the text has it.
    """

    ids: Tensor
    position: Tensor
    frequency: Tensor

    @classmethod
    def of(cls, text: Text) -> Tokens:
        """Count the tokens of a text."""
        ids = [token for sample in text.samples for token in sample]
        counts = Counter(ids)
        return cls(
            torch.tensor(ids),
            torch.cat([torch.arange(len(sample)) for sample in text.samples]),
            torch.tensor([math.log(counts[token]) for token in ids]),
        )


def networks_of(
    block: BlockNetworks,
    courses: Tensor,
    share: Tensor,
    tokens: Tokens,
    words: tuple[Tensor, Tensor] | None,
    widths: Mapping[int, int],
    decode: Callable[[int], str],
) -> list[Network]:
    """Describe every network of a block.

    Args:
        courses: (n_tokens, k), standardised.
        share: (k,), of the signals' variance.
        words: tokens that each raises and lowers, see `words.words`; None where that is not known.
        widths: layer -> its neurons.
        decode: gives the text of a token.
    """
    figures = {
        "variance": share,
        "kurtosis": block.maps.pow(4).mean(1) - 3.0,
        "stability_starts": block.between_starts,
        "stability_groups": block.between_groups,
        "density": (courses > ACTIVE).float().mean(0),
        "position": correlations(courses, tokens.position),
        "frequency": correlations(courses, tokens.frequency),
    }
    found = []
    for k in range(len(block.maps)):
        facts = {key: plain(values[k]) for key, values in figures.items()}
        facts["layers"] = _by_layer(block, k, widths)
        for number, kind in enumerate(("raises", "lowers")):
            ids = [] if words is None else words[number][k].tolist()
            facts[kind] = list(map(decode, ids))
        found.append(Network(f"{block.name}.N{k}", block.name, k, facts))
    return found


def _by_layer(block: BlockNetworks, k: int, widths: Mapping[int, int]) -> dict[str, Any]:
    """Say of one network how many members each layer has, and its share of the map's energy."""
    total = float(block.maps[k].square().sum())
    found = {}
    for layer, columns in block.layers.items():
        part = block.maps[k, columns].view(-1, widths[layer])
        members = int((part.abs() >= MEMBER).any(0).sum())
        energy = float(part.square().sum()) / total
        if members or energy >= _FEW:
            found[str(layer)] = {"members": members, "energy": energy}
    return found


def plain(value: Any) -> float | None:
    """Give a number that JSON has; None where nothing was measured."""
    value = float(value)
    return value if math.isfinite(value) else None
