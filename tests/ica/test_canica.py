import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import fastica as sklearn_fastica

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.ica import canica, nilearn_canica, reduce_time, standardise, whiten
from funcnet_plugin.ica.contrast import negentropy
from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.parts import DECOMPOSERS
from funcnet_plugin.ica.runs import initial_unmixing
from tests.ica.sources import assert_signed_permutation, correlation, planted

CONTRASTS = ("cube", "logcosh", "exp")


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_planted_networks_come_back_as_a_signed_permutation(contrast):
    X, truth = planted(k=6, neurons=2000, tokens=8000, noise=8.0)
    found = canica(X, 6, contrast=contrast, seed=3)
    assert found.runs[0].converged
    assert_signed_permutation(correlation(found.maps[0], truth), 0.99)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_maps_equal_scikit_learns_on_the_same_matrix(contrast):
    X, _ = planted(seed=1)
    C, _ = reduce_time(standardise(X), 8)
    start = initial_unmixing(8, seed=0, start=0)
    _, _, S = sklearn_fastica(
        C.T.numpy(),
        fun=contrast,
        whiten="unit-variance",
        w_init=start.numpy(),
        max_iter=500,
        tol=1e-10,
    )
    ours = canica(X, 8, solver="fastica", contrast=contrast, tol=1e-10, max_iter=500)
    assert_signed_permutation(correlation(ours.maps[0], torch.from_numpy(S.T)), 0.99999)


def test_maps_equal_nilearns_on_the_same_matrix():
    X, _ = planted(seed=2)
    reference = nilearn_canica(X, 8, seed=0)
    ours = canica(X, 8)
    assert reference.maps.shape == (1, 8, X.shape[1])
    # nilearn scales every token to unit norm before its SVD, so the two spaces differ slightly
    assert_signed_permutation(correlation(ours.maps[0], reference.maps[0]), 0.999)


def test_maps_are_zscored_and_their_peak_is_positive():
    X, _ = planted(neurons=2000)
    maps = canica(X, 8, n_init=2).maps
    assert maps.shape == (2, 8, 2000)
    assert maps.dtype == torch.float32
    assert maps.mean(-1).abs().max() < 1e-5
    assert torch.allclose(maps.std(-1, correction=0), torch.ones(2, 8), atol=1e-5)
    assert (maps.amax(-1) >= -maps.amin(-1)).all()


def test_the_same_seed_gives_the_same_maps_and_more_starts_keep_the_first():
    X, _ = planted(neurons=1500, tokens=200)
    one = canica(X, 8, n_init=1, seed=5).maps
    three = canica(X, 8, n_init=3, seed=5).maps
    assert torch.equal(one, canica(X, 8, n_init=1, seed=5).maps)
    assert torch.allclose(one[0], three[0], atol=1e-5)
    assert not torch.allclose(three[0], three[1], atol=1e-2)


@pytest.mark.parametrize(
    ("setting", "value"), [("contrast", "logcosh"), ("tol", 1e-6), ("max_iter", 9)]
)
def test_nilearn_refuses_settings_it_would_ignore(setting, value):
    message = rf"nilearn has no parameter '{setting}' \(it has n_init\); it belongs to canica"
    with pytest.raises(RecipeError, match=message):
        DECOMPOSERS.make({"name": "nilearn", setting: value})


def test_nilearn_says_when_it_did_not_converge():
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 5000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning must become a report, not escape
        result = nilearn_canica(noise, 40, n_init=1)
    assert result.runs[0].converged is False


def test_contrast_is_that_of_scikit_learn_from_the_same_start():
    X, _ = planted(k=20, neurons=3000, tokens=300, seed=4)
    white = whiten(reduce_time(standardise(X), 20)[0])
    start = initial_unmixing(20, seed=9, start=0)
    ours = fastica(white, w_init=start).W[0] @ white
    W = sklearn_fastica(white.T.numpy(), fun="cube", whiten=False, w_init=start.numpy(),
                        max_iter=300)[1]  # fmt: skip
    theirs = torch.from_numpy(W) @ white
    assert negentropy(ours, "cube") >= negentropy(theirs, "cube") * (1 - 1e-6)


def test_stability_is_the_mean_best_correlation_with_the_other_starts():
    X, _ = planted(k=6, neurons=2000, tokens=8000, noise=8.0)
    found = canica(X, 9, n_init=4)  # six networks, and three directions of noise
    assert found.stability.shape == (4, 9)
    pairs = [correlation(found.maps[0], found.maps[s]).max(1).values for s in (1, 2, 3)]
    expected = torch.stack(pairs).mean(0)
    torch.testing.assert_close(found.stability[0].float(), expected.float(), atol=1e-4, rtol=0)
    assert (found.stability[0] > 0.95).sum() >= 6
    assert canica(X, 6).stability.isnan().all()
