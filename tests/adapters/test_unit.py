"""A unit whose pieces own several rows and columns: scores, surgery and repair ask for no more."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from funcnet_plugin.adapters import MLPBlock, Unit, bind
from funcnet_plugin.cut.activity import apply_mask
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.repair.repair import Cut
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Evidence
from tests.conftest import make_llama

SIZE = 4  # neurons of one piece
KEEP = torch.tensor([0, 2, 3, 7, 11])  # of the twelve pieces of 48 neurons
NEURONS = (KEEP[:, None] * SIZE + torch.arange(SIZE)).flatten()


@dataclass(frozen=True)
class Groups:
    """Neighbouring neurons that can only go together, as the columns of one head would."""

    neurons: MLPBlock

    def __getattr__(self, name: str):
        return getattr(self.neurons, name)

    @property
    def width(self) -> int:
        return self.neurons.width // SIZE

    @property
    def n_columns(self) -> int:
        return self.neurons.width

    def _neurons_of(self, pieces: Tensor) -> Tensor:
        return (pieces[:, None] * SIZE + torch.arange(SIZE)).flatten()

    def rows_of(self, pieces: Tensor, module: torch.nn.Module) -> Tensor:
        return self.neurons.rows_of(self._neurons_of(pieces), module)

    def columns_of(self, pieces: Tensor) -> Tensor:
        return self._neurons_of(pieces)

    def by_piece(self, of_columns: Tensor, of_rows=()) -> Tensor:
        return self.neurons.by_piece(of_columns, of_rows).unflatten(0, (-1, SIZE)).sum(1)

    def resize(self, width: int) -> None:
        self.neurons.resize(width * SIZE)


def two_alike() -> tuple[Unit, MLPBlock]:
    """The same MLP as groups and as neurons."""
    return Groups(bind(make_llama()).blocks[1]), bind(make_llama()).blocks[1]


def moments_of_noise() -> Moments:
    moments = Moments(48)
    moments.add(torch.randn(300, 48, generator=torch.Generator().manual_seed(1)))
    return moments


def test_cutting_pieces_cuts_their_rows_and_columns():
    groups, neurons = two_alike()
    cut(groups, KEEP)
    cut(neurons, NEURONS)
    assert groups.width == len(KEEP) and neurons.width == len(NEURONS)
    x = torch.randn(5, 24)
    assert torch.equal(groups.mlp(x), neurons.mlp(x))


def test_silencing_pieces_silences_their_columns():
    groups, neurons = two_alike()
    apply_mask(groups, KEEP.tolist())
    apply_mask(neurons, NEURONS.tolist())
    x = torch.randn(5, 24)
    assert torch.equal(groups.mlp(x), neurons.mlp(x))


@pytest.mark.parametrize("name", ["bias", "least_squares"])
def test_repairs_are_of_columns(name):
    groups, neurons = two_alike()
    repair, moments = REPAIRS.make(name), {"moments": moments_of_noise()}
    found, expected = (
        repair.repaired(Cut(unit, keep, moments))
        for unit, keep in ((groups, KEEP), (neurons, NEURONS))
    )
    for mine, theirs in (
        (found.output_weight, expected.output_weight),
        (found.bias, expected.bias),
    ):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["effect", "wanda_sp", "loss_effect", "taylor"])
def test_scores_of_a_piece_are_the_sum_over_what_it_owns(name):
    groups, neurons = two_alike()
    scorer = SCORERS.make(name)
    known = {
        "moments": moments_of_noise(),
        "output_gradients": torch.eye(24, dtype=torch.float64),
        "weight_gradients": tuple(torch.randn_like(weight) for weight in neurons.weights),
    }
    statistics = {need: known[need] for need in scorer.needs}
    of_groups, of_neurons = (
        scorer.score(Evidence(unit, 0, statistics)) for unit in (groups, neurons)
    )
    assert of_groups.shape == (12,)
    assert torch.allclose(of_groups, of_neurons.unflatten(0, (12, SIZE)).sum(1))
