import pytest
import torch

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.repair.compensation import (
    RIDGES,
    Moments,
    bias_repair,
    choose_ridge,
    least_squares_repair,
    pruned_neurons,
)

HIDDEN, WIDTH, TOKENS = 8, 20, 400


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, WIDTH, generator=generator)
    h = torch.randn(TOKENS, 12, generator=generator) @ mixing + 0.5
    h = h + 0.1 * torch.randn(TOKENS, WIDTH, generator=generator)
    W = torch.randn(HIDDEN, WIDTH, generator=generator)
    keep = torch.randperm(WIDTH, generator=generator)[:13].sort().values
    return h, W, keep


def test_moments_equal_numpy_whatever_the_chunks(data):
    h = data[0]
    moments = Moments(WIDTH)
    for chunk in h.split([100, 1, 250, 49]):
        moments.add(chunk)
    exact = h.double()
    assert moments.count == TOKENS
    assert torch.allclose(moments.mean, exact.mean(0))
    assert torch.allclose(moments.second, exact.T @ exact / TOKENS, atol=1e-5)
    assert torch.allclose(moments.variance, exact.var(0, correction=0), rtol=1e-4)


def test_least_squares_equals_the_normal_equations(data):
    h, W, keep = (t.double() if t.is_floating_point() else t for t in data)
    second = h.T @ h / TOKENS
    repaired = least_squares_repair(W, second, keep, ridge=1e-12)
    expected = torch.linalg.lstsq(h[:, keep], h @ W.T).solution.T
    assert torch.allclose(repaired, expected, atol=1e-6)


def test_least_squares_is_better_than_bias_is_better_than_nothing(data):
    h, W, keep = data
    moments = Moments(WIDTH)
    moments.add(h)
    target = h.double() @ W.double().T

    def error(weight, bias=0.0):
        return float((h[:, keep].double() @ weight.double().T + bias - target).square().mean())

    none = error(W[:, keep])
    bias = error(W[:, keep], bias_repair(W, moments.mean, keep))
    squares = error(least_squares_repair(W, moments.second, keep, ridge=0.02))
    assert squares < bias < none


def test_a_large_ridge_returns_to_the_plain_cut(data):
    h, W, keep = data
    second = (h.T @ h / TOKENS).double()
    repaired = least_squares_repair(W, second, keep, ridge=1e9)
    assert torch.allclose(repaired, W[:, keep].double(), atol=1e-6)


def test_cutting_nothing_changes_nothing(data):
    h, W, _ = data
    everything = torch.arange(WIDTH)
    second = (h.T @ h / TOKENS).double()
    assert torch.equal(least_squares_repair(W, second, everything, 0.02), W.double())
    assert bias_repair(W, h.double().mean(0), everything).abs().max() == 0


def test_a_layer_that_was_never_active_is_left_as_cut(data):
    _, W, keep = data
    repaired = least_squares_repair(W, torch.zeros(WIDTH, WIDTH).double(), keep, 0.02)
    assert torch.equal(repaired, W[:, keep].double())


def test_pruned_neurons_are_the_complement(data):
    keep = data[2]
    pruned = pruned_neurons(keep, WIDTH)
    assert sorted([*keep.tolist(), *pruned.tolist()]) == list(range(WIDTH))


def test_the_ridge_is_the_best_on_tokens_that_were_not_fitted():
    """Against refitting and measuring every choice with the tokens themselves."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    h = torch.randn(40, 12, generator=generator, dtype=torch.float64) @ mix
    fitted, unseen = h[:25], h[25:]
    everything, held_out = Moments(12), Moments(12)
    everything.add(h)
    held_out.add(unseen)
    W = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    keep = torch.tensor([0, 2, 3, 5, 8, 9, 11])

    def error(ridge):
        repaired = least_squares_repair(W, fitted.T @ fitted / 25, keep, ridge)
        return float((unseen @ W.T - unseen[:, keep] @ repaired.T).square().sum())

    errors = {ridge: error(ridge) for ridge in RIDGES}
    assert choose_ridge(W, everything, held_out, keep) == min(errors, key=errors.get)
    assert RIDGES[0] < min(errors, key=errors.get)  # the choice is one


def test_a_ridge_is_not_chosen_without_samples_held_out():
    everything = Moments(4)
    everything.add(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(CalibrationError, match="fewer than eight"):
        choose_ridge(torch.ones(2, 4), everything, Moments(4), torch.tensor([0, 1]))
