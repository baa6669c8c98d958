"""The mean of what was cut, as a bias."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.repair.bias import Bias, mean_of_cut
from funcnet_plugin.repair.repair import Cut, cut_columns
from tests.conftest import make_llama
from tests.repair.data import WIDTH, correlated


@pytest.fixture
def data():
    return correlated()


def test_cutting_nothing_changes_nothing(data):
    h, W, _ = data
    everything = torch.arange(WIDTH)
    assert mean_of_cut(W, h.double().mean(0), everything).abs().max() == 0


def test_cut_columns_are_the_complement(data):
    keep = data[2]
    pruned = cut_columns(keep, WIDTH)
    assert sorted([*keep.tolist(), *pruned.tolist()]) == list(range(WIDTH))


def test_the_mean_output_stays(data):
    h, W, keep = data
    h, W = h.double(), W.double()
    found = h[:, keep] @ W[:, keep].T + mean_of_cut(W, h.mean(0), keep)
    torch.testing.assert_close(found.mean(0), (h @ W.T).mean(0))


@torch.no_grad()
def test_a_bias_that_is_there_already_stays_part_of_it():
    block = bind(make_llama(mlp_bias=True)).blocks[0]
    block.down.bias.normal_()
    moments = Moments(block.width)
    moments.add(torch.randn(50, block.width))
    keep = torch.arange(0, block.width, 2)
    found = Bias().repaired(Cut(block, keep, {"moments": moments})).bias
    mean = mean_of_cut(block.output_weight, moments.mean, keep)
    torch.testing.assert_close(found, mean + block.down.bias.double())
