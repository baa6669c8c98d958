from dataclasses import replace

import pytest
import torch

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import descent, expectations, reduce_time, standardise, whiten
from funcnet_plugin.ica.contrast import CONTRASTS, negentropy
from funcnet_plugin.ica.expectations import Expectations
from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.picard import picard
from funcnet_plugin.ica.runs import initial_unmixing
from tests.ica.sources import assert_signed_permutation, correlation, planted
from tests.waits import Waits


@pytest.fixture(scope="module")
def white():
    X, _ = planted(k=10, neurons=3000, tokens=900)
    return whiten(reduce_time(standardise(X), 10)[0])


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_it_ends_where_fastica_stays(white, contrast):
    """A fixed point of the one is a fixed point of the other."""
    found = picard(white, contrast=contrast, tol=1e-12, n_init=2)
    assert all(run.converged for run in found.runs)
    again = fastica(white, contrast=contrast, tol=1e-8, w_init=found.W)
    for mine, theirs in zip(found.W, again.W, strict=True):
        assert_signed_permutation((mine @ theirs.T).abs(), 0.9999)


@pytest.mark.parametrize("contrast", ["cube", "logcosh"])  # its "exp" is another function
def test_sources_are_those_of_python_picard(white, contrast):
    reference = pytest.importorskip("picard", reason="python-picard is not installed")
    start = initial_unmixing(10, seed=0, start=0)
    start = torch.linalg.svd(start).U @ torch.linalg.svd(start).Vh
    _, W, _ = reference.picard(
        white.numpy(), fun={"logcosh": "tanh"}.get(contrast, contrast), ortho=True, extended=True,
        whiten=False, centering=False, w_init=start.numpy(), tol=1e-9, max_iter=500,
    )  # fmt: skip
    ours = picard(white, contrast=contrast, tol=1e-12, w_init=start).W[0] @ white
    assert_signed_permutation(correlation(ours, torch.from_numpy(W) @ white), 0.999)


def test_planted_networks_come_back():
    X, truth = planted(k=6, neurons=2000, tokens=8000, noise=8.0)
    S = picard(whiten(reduce_time(standardise(X), 6)[0]), tol=1e-8)
    maps = S.W[0] @ whiten(reduce_time(standardise(X), 6)[0])
    assert_signed_permutation(correlation(maps, truth), 0.99)


def test_the_loss_falls_from_the_long_steps_to_the_end(white):
    short = picard(white, max_iter=2, n_init=4)
    assert not any(run.converged for run in short.runs)
    full = picard(white, n_init=4)
    gain = negentropy(full.W @ white, "cube") - negentropy(short.W @ white, "cube")
    assert (gain >= 0).all() and gain.max() > 0


def test_the_result_is_orthonormal_in_float64(white):
    W = picard(white, n_init=3).W
    assert W.dtype == torch.float64
    assert torch.allclose(W @ W.mT, torch.eye(10).double().expand(3, 10, 10), atol=1e-9)


def test_more_starts_never_change_the_first_ones(white):
    many, few = picard(white, n_init=5), picard(white, n_init=2)
    assert many.runs[:2] == few.runs
    assert torch.equal(many.W[:2], few.W)


def test_a_start_that_has_ended_stays_while_the_host_does_not_look(white, monkeypatch):
    every = picard(white, n_init=4)
    monkeypatch.setitem(descent._LOOK_AT, "cpu", 8)  # as on a GPU
    eighth = picard(white, n_init=4)
    assert eighth.runs == every.runs
    assert torch.equal(eighth.W, every.W)


def test_the_host_does_not_wait_between_two_looks(white, monkeypatch):
    monkeypatch.setitem(descent._LOOK_AT, "cpu", 1000)
    expect = Expectations(white.float(), "cube")
    W = torch.linalg.qr(torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(0))).Q
    with Waits() as mode:
        found = descent.descend(expect, W, 1e-4, max_iter=60)
    assert mode.seen == []
    assert found.converged.all() and found.steps.max() < 60


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_means_are_those_of_all_samples_however_these_are_taken(white, contrast, monkeypatch):
    W = torch.linalg.qr(torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(0))).Q
    Y, of = W.double() @ white, CONTRASTS[contrast]
    gY = of.g(Y)
    wanted = gY @ Y.mT / Y.shape[-1], of.slope(Y, gY), of.G(Y).mean(-1)
    monkeypatch.setattr(expectations, "_SAMPLES", 700)
    monkeypatch.setattr(expectations, "_BYTES", 0)
    for together in (False, True):  # as on a CPU, as on a GPU
        expect = Expectations(white.float(), contrast)
        expect._together = together
        for mean, right in zip(expect(W), wanted, strict=True):
            assert torch.allclose(mean.double(), right, rtol=1e-4, atol=1e-5)


def test_a_start_that_breaks_down_is_rescued_and_says_so(white, monkeypatch):
    cube = CONTRASTS["cube"]
    fails_in_float32 = replace(
        cube, g=lambda Y: cube.g(Y * (1.0 if Y.dtype == torch.float64 else float("nan")))
    )
    monkeypatch.setitem(CONTRASTS, "cube", fails_in_float32)
    found = picard(white)
    assert torch.isfinite(found.W).all() and found.runs[0].converged
    assert found.runs[0].promoted


def test_bad_input_is_refused(white):
    with pytest.raises(DecompositionError, match="choose one of cube, logcosh, exp"):
        picard(white, contrast="tanh")
    with pytest.raises(DecompositionError, match="NaN"):
        picard(white * float("nan"))
