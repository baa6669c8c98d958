"""Finds the networks of one atlas again in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from funcnet_plugin.atlas.atlas import MEMBER, Atlas
from funcnet_plugin.atlas.checks import check_neurons
from funcnet_plugin.errors import AtlasError

Kept = Sequence[Sequence[int]]  # layer -> for each neuron its number in the model it was cut from
_DRAWS = 5  # of shuffled neurons


@dataclass(frozen=True)
class Match:
    """Says which network of another atlas is most like one of this.

    Attributes:
        name: of this atlas.
        other: of the other one; each is given once.
        similarity: cosine of the two maps' large entries, 0 to 1; the sign of a map means nothing.
        dice: of the members, 2 |A and B| / (|A| + |B|); None where neither has any.
    """

    name: str
    other: str
    similarity: float
    dice: float | None


@dataclass(frozen=True)
class Matching:
    """Says how alike two atlases are.

    Attributes:
        matches: one for each network of the smaller set of every block.
        chance: mean similarity of matches to maps whose neurons were shuffled within their layer.
    """

    matches: tuple[Match, ...]
    chance: float

    @property
    def similarity(self) -> float:
        """Average the similarity of all matches."""
        return float(np.mean([match.similarity for match in self.matches]))


def match(atlas: Atlas, other: Atlas, kept: Kept | None = None) -> Matching:
    """Assign the networks of two atlases to each other, block by block, as alike as possible.

    Args:
        other: of the same model, or of one that was cut from it.
        kept: of the cut model, see `checkpoints.block.read_kept`; None where none was cut.

    Raises:
        AtlasError: their signals or widths differ, or they have no block in common.
    """
    _check(atlas, other, kept)
    common = [block for block in atlas.maps if block in other.maps]
    if not common:
        raise AtlasError(
            f"one atlas has blocks like {next(iter(atlas.maps))} and the other like "
            f"{next(iter(other.maps))}; make both with the same strategy and layers."
        )
    generator = torch.Generator().manual_seed(0)
    found: list[Match] = []
    by_chance: list[float] = []
    for block in common:
        widths = atlas.widths
        mine, theirs = _rows(atlas, block, widths), _rows(other, block, widths, kept)
        similarity = _cosines(mine, theirs)
        for i, j in zip(*linear_sum_assignment(-similarity), strict=True):
            name, partner = f"{block}.N{i}", f"{block}.N{j}"
            dice = _dice(atlas, name, other, partner, kept)
            found.append(Match(name, partner, float(similarity[i, j]), dice))
        for _ in range(_DRAWS):
            shuffled = _rows(other, block, widths, kept, _shuffles(widths, generator))
            by_luck = _cosines(mine, shuffled)
            by_chance.append(float(by_luck[linear_sum_assignment(-by_luck)].mean()))
    return Matching(tuple(found), float(np.mean(by_chance)))


def kept_alike(atlas: Atlas, other: Atlas, ratio: float) -> float:
    """Tell which share of the neurons that one atlas would keep the other would keep, too.

    Args:
        ratio: share of the neurons of each layer that goes.

    Returns:
        mean over layers; two random choices would share ``1 - ratio``.

    Raises:
        AtlasError: their widths differ, or they have no layer in common.
    """
    _check(atlas, other, None)
    shares = []
    for layer in atlas.scores.keys() & other.scores.keys():
        n = round((1.0 - ratio) * atlas.widths[layer])
        mine, theirs = (set(a.scores[layer].topk(n).indices.tolist()) for a in (atlas, other))
        shares.append(len(mine & theirs) / n)
    if not shares:
        raise AtlasError("the atlases have no layer in common.")
    return float(np.mean(shares))


def _check(atlas: Atlas, other: Atlas, kept: Kept | None) -> None:
    if atlas.signals != other.signals:
        raise AtlasError(
            f"one atlas is of {', '.join(atlas.signals)} and the other of "
            f"{', '.join(other.signals)}; make both of the same signals."
        )
    if kept is not None:
        check_neurons(atlas, "of the model that was cut")
    if kept is None and atlas.widths != other.widths:
        raise AtlasError(
            f"one atlas is of a model with layers of {_short(atlas.widths)} neurons and the other "
            f"of {_short(other.widths)}; of a pruned model say which neurons it kept."
        )
    if kept is not None and [len(layer) for layer in kept] != other.widths:
        raise AtlasError(
            f"the kept neurons are of layers with {_short([len(k) for k in kept])} neurons, and "
            f"the second atlas is of {_short(other.widths)}; give those of its own model."
        )
    if kept is not None and len(kept) != len(atlas.widths):
        raise AtlasError(
            f"the first atlas is of {len(atlas.widths)} layers and the kept neurons of "
            f"{len(kept)}; give the atlas of the model that was cut."
        )


def _short(widths: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))


def _shuffles(widths: Sequence[int], generator: torch.Generator) -> dict[int, Tensor]:
    return {i: torch.randperm(width, generator=generator) for i, width in enumerate(widths)}


def _rows(
    atlas: Atlas,
    block: str,
    widths: Sequence[int],
    kept: Kept | None = None,
    shuffles: Mapping[int, Tensor] | None = None,
) -> csr_array:
    """Put the maps of a block into rows of unit length, one column for each signal of the model.

    Args:
        widths: of the model that the other one was cut from.
        kept: see `match`.
        shuffles: layer -> where each of its neurons goes.
    """
    maps = atlas.maps[block]
    e = maps.entries
    neuron = e.neuron.clone()
    for layer in e.layer.unique().tolist():
        here = e.layer == layer
        if kept is not None:
            neuron[here] = torch.tensor(kept[layer])[neuron[here]]
        if shuffles is not None:
            neuron[here] = shuffles[layer][neuron[here]]
    starts = torch.tensor([0, *widths]).cumsum(0)
    n_signals = len(atlas.signals)
    columns = (starts[e.layer] + neuron) * n_signals + e.signal
    number = torch.repeat_interleave(torch.arange(len(maps)), maps.offsets.diff())
    length = torch.zeros(len(maps)).index_add_(0, number, e.z.square()).sqrt()
    values = e.z / length[number]
    shape = (len(maps), sum(widths) * n_signals)
    return csr_array((values.numpy(), (number.numpy(), columns.numpy())), shape=shape)


def _cosines(mine: csr_array, theirs: csr_array) -> np.ndarray:
    return np.abs((mine @ theirs.T).toarray())


def _dice(atlas: Atlas, name: str, other: Atlas, partner: str, kept: Kept | None) -> float | None:
    def members(of: Atlas, network: str, kept: Kept | None) -> set[tuple[int, int]]:
        found = of.neurons([network], max(MEMBER, of.cut))
        return {
            (layer, neuron if kept is None else kept[layer][neuron])
            for layer, neurons in found.items()
            for neuron in neurons.tolist()
        }

    mine, theirs = members(atlas, name, None), members(other, partner, kept)
    total = len(mine) + len(theirs)
    return 2 * len(mine & theirs) / total if total else None
