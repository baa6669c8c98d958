import numpy as np
import pytest
import torch

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import reduce_time, standardise, whiten, zscore


def test_zscore_equals_float64_numpy_for_every_input_dtype():
    X = torch.randn(300, 20, generator=torch.Generator().manual_seed(0)) * 3 + 50
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        given = X.to(dtype)
        exact = given.double().numpy()
        expected = (exact - exact.mean(0)) / exact.std(0)
        assert np.allclose(zscore(given).numpy(), expected, atol=1e-5)


def test_a_constant_neuron_stays_zero():
    X = torch.randn(50, 3)
    X[:, 1] = 0.1  # not representable in binary: its sample variance is rounding, not zero
    Z = zscore(X)
    assert (Z[:, 1] == 0).all()
    assert torch.allclose(Z[:, 0].std(correction=0), torch.tensor(1.0))


def test_signals_that_are_not_finite_are_refused_and_named():
    X = torch.randn(50, 8)
    X[3, 5] = float("inf")
    with pytest.raises(DecompositionError, match=r"\[5\]"):
        zscore(X)


@pytest.mark.parametrize("shape", [(200, 60), (60, 200)])
def test_reduction_is_the_leading_singular_space_from_either_side(shape):
    X = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    C, explained = reduce_time(standardise(X), 10)
    _, S, Vt = torch.linalg.svd(zscore(X).double(), full_matrices=False)
    expected = S[:10, None] * Vt[:10]
    assert torch.allclose(C.abs(), expected.abs(), atol=1e-3)
    assert explained == pytest.approx(float((S[:10] ** 2).sum() / (S**2).sum()), abs=1e-6)


def test_too_many_components_are_refused_with_the_limit():
    with pytest.raises(DecompositionError, match="between 1 and 20"):
        reduce_time(standardise(torch.randn(20, 30)), 21)


def test_fewer_directions_than_components_give_fewer_rows():
    low_rank = torch.randn(100, 4).double() @ torch.randn(4, 50).double()
    C, _ = reduce_time(standardise(low_rank), 10)
    assert C.shape == (4, 50)


def test_constant_signals_are_refused():
    with pytest.raises(DecompositionError, match="no neuron varies"):
        reduce_time(standardise(torch.ones(20, 30)), 3)


def test_whitened_rows_are_uncorrelated_over_neurons():
    C = torch.randn(6, 500).double() * torch.tensor([1.0, 10, 1e2, 1e3, 3, 7])[:, None] + 5
    X = whiten(C)
    assert torch.allclose(X @ X.T / 500, torch.eye(6).double(), atol=1e-9)
    assert X.mean(1).abs().max() < 1e-9


def spectrum(T: int, V: int) -> torch.Tensor:
    """Signals whose variances fall like those of real ones, without a gap after the wanted ones."""
    generator = torch.Generator().manual_seed(3)
    courses = torch.randn(T, V, generator=generator) * torch.arange(1, V + 1) ** -0.8
    return courses @ torch.randn(V, V, generator=generator)


def test_the_krylov_space_holds_the_variance_of_the_exact_one():
    Z = standardise(spectrum(900, 700))
    exact, explained = reduce_time(Z, 20, exact=True)
    found, reached = reduce_time(Z, 20)
    assert found.shape == exact.shape == (20, 700)
    assert not torch.equal(found.abs(), exact.abs())  # another way to get there
    assert explained * (1 - 1e-4) <= reached <= explained * (1 + 1e-6)
    bases = (torch.linalg.qr(C.T).Q for C in (exact, found))
    cosines = torch.linalg.svdvals(next(bases).T @ next(bases))
    assert cosines.square().mean() > 0.995


def test_signals_come_in_blocks_of_any_size_and_dtype():
    X = spectrum(300, 80)
    whole = reduce_time(standardise(X), 10)
    parts = reduce_time(standardise([X[:7], X[7:130], X[130:]]), 10)
    torch.testing.assert_close(whole[0].abs(), parts[0].abs(), atol=1e-4, rtol=1e-4)
    assert whole[1] == pytest.approx(parts[1], abs=1e-6)
