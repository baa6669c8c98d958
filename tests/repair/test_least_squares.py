"""Least squares, which move onto the kept pieces what the cut ones carried."""

import pytest
import torch

from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.repair.bias import mean_of_cut
from funcnet_plugin.repair.least_squares import least_squares
from tests.repair.data import TOKENS, WIDTH, correlated


@pytest.fixture
def data():
    return correlated()


def test_they_equal_the_normal_equations(data):
    h, W, keep = (t.double() if t.is_floating_point() else t for t in data)
    second = h.T @ h / TOKENS
    repaired = least_squares(W, second, keep, ridge=1e-12)
    expected = torch.linalg.lstsq(h[:, keep], h @ W.T).solution.T
    assert torch.allclose(repaired, expected, atol=1e-6)


def test_they_are_better_than_a_bias_which_is_better_than_nothing(data):
    h, W, keep = data
    moments = Moments(WIDTH)
    moments.add(h)
    target = h.double() @ W.double().T

    def error(weight, bias=0.0):
        return float((h[:, keep].double() @ weight.double().T + bias - target).square().mean())

    none = error(W[:, keep])
    bias = error(W[:, keep], mean_of_cut(W, moments.mean, keep))
    squares = error(least_squares(W, moments.second, keep, ridge=0.02))
    assert squares < bias < none


def test_a_large_ridge_returns_to_the_plain_cut(data):
    h, W, keep = data
    second = (h.T @ h / TOKENS).double()
    repaired = least_squares(W, second, keep, ridge=1e9)
    assert torch.allclose(repaired, W[:, keep].double(), atol=1e-6)


def test_cutting_nothing_changes_nothing(data):
    h, W, _ = data
    second = (h.T @ h / TOKENS).double()
    assert torch.equal(least_squares(W, second, torch.arange(WIDTH), 0.02), W.double())


def test_a_layer_that_was_never_active_is_left_as_cut(data):
    _, W, keep = data
    repaired = least_squares(W, torch.zeros(WIDTH, WIDTH).double(), keep, 0.02)
    assert torch.equal(repaired, W[:, keep].double())


def test_the_moments_are_not_changed(data):
    h, W, keep = data
    second = (h.T @ h / TOKENS).double()
    before = second.clone()
    for kept in (keep, torch.arange(WIDTH)):
        least_squares(W, second, kept, 0.02)
        assert torch.equal(second, before)
