"""Scores to second order against brute force: every candidate, the others refitted each time."""

import numpy as np
import pytest
import torch

from funcnet_plugin.score import elimination
from tests.waits import Waits

RIDGE = 0.02


def damped_second_moment(h: np.ndarray) -> np.ndarray:
    S = h.T @ h / len(h)
    return S + RIDGE * np.diag(S).mean() * np.eye(len(S))


@pytest.mark.parametrize("at_once", [3, 64])
def test_obs_goes_by_the_exact_loss_of_the_best_repair(measured, monkeypatch, at_once):
    """By brute force for the first removals: the least loss with all others refitted."""
    # matrices are brought up to date in between
    monkeypatch.setattr(elimination, "_AT_ONCE", at_once)
    S, W = damped_second_moment(measured.activations), measured.down
    left = list(range(len(S)))
    order = measured.score("obs")
    for step in range(5):
        losses = {}
        for j in left:
            keep = [i for i in left if i != j]
            refit = W @ S[:, keep] @ np.linalg.inv(S[np.ix_(keep, keep)])
            change = W.copy()
            change[:, keep] -= refit
            losses[j] = np.trace(change @ S @ change.T)
        gone = min(losses, key=losses.get)
        assert order[gone] == step
        left.remove(gone)
    assert sorted(order.tolist()) == list(range(len(S)))


def test_elimination_does_not_depend_on_when_matrices_are_brought_up_to_date(measured, monkeypatch):
    at_the_end = measured.score("surgeon")
    monkeypatch.setattr(elimination, "_AT_ONCE", 1)
    np.testing.assert_allclose(measured.score("surgeon"), at_the_end, rtol=1e-8)


def test_the_host_waits_as_often_for_many_columns_as_for_few():
    generator = torch.Generator().manual_seed(0)
    waits = []
    for width in (10, 150):
        h = torch.randn(300, width, generator=generator, dtype=torch.float64)
        with Waits() as mode:
            elimination.eliminate(h[:20], h.T @ h)
        waits.append(len(mode.seen))
    assert waits[0] == waits[1] <= 1


def test_loss_effect_is_the_mean_square_of_activation_times_gradient_if_independent(measured):
    """K-FAC's assumption: activations and gradients independent. So all pairs of tokens."""
    h = measured.activations
    along = measured.slopes @ measured.down  # (tokens, width): the slope along each column
    expected = [np.mean(np.outer(h[:, j], along[:, j]) ** 2) for j in range(h.shape[1])]
    np.testing.assert_allclose(measured.score("loss_effect"), expected, rtol=1e-3)


def test_surgeon_costs_are_those_of_refitting_in_the_metric_of_the_loss(measured):
    """The first removals against brute force: every candidate, the others refitted each time."""
    S, W = damped_second_moment(measured.activations), measured.down
    G = measured.slopes.T @ measured.slopes / len(measured.slopes)

    def error(kept):
        left = W @ S[:, kept] @ np.linalg.inv(S[np.ix_(kept, kept)])
        difference = W.copy()
        difference[:, kept] -= left
        return np.trace(difference.T @ G @ difference @ S)

    found = measured.score("surgeon")
    kept, before, highest = list(range(len(S))), 0.0, 0.0
    for _ in range(6):
        errors = {j: error([i for i in kept if i != j]) for j in kept}
        gone = min(errors, key=errors.get)
        highest = max(highest, errors[gone] - before)
        assert found[gone] == pytest.approx(highest, rel=1e-2)
        before = errors[gone]
        kept.remove(gone)
    assert min(found[kept]) >= highest * 0.99
