import pytest
import torch

from funcnet_plugin.ica.polar import by_eigenvectors, newton_schulz, polar


def matrices(n: int, k: int, decades: float) -> torch.Tensor:
    """Rows that differ in length by so many decades, in float64."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.logspace(0, -decades, k, dtype=torch.float64)
    A = torch.randn(n, k, k, generator=generator, dtype=torch.float64)
    return A * lengths[torch.randperm(k, generator=generator), None]


def by_svd(A: torch.Tensor) -> torch.Tensor:
    U, _, V = torch.linalg.svd(A)
    return U @ V


@pytest.mark.parametrize("k", [2, 16, 128])
@pytest.mark.parametrize("decades", [0, 3, 5])
def test_newton_schulz_is_the_factor_of_the_svd_where_rows_differ_by_1e5(k, decades):
    A = matrices(3, k, decades)
    assert (newton_schulz(A) - by_svd(A)).abs().max() < 1e-9


def test_eigenvectors_give_the_same_factor():
    A = matrices(3, 32, 2)
    assert (by_eigenvectors(A) - newton_schulz(A)).abs().max() < 1e-9


def test_rows_scaled_to_unit_length_would_give_another_factor():
    A = matrices(1, 16, 3)
    assert (by_svd(torch.nn.functional.normalize(A, dim=-1)) - by_svd(A)).abs().max() > 0.1


@pytest.mark.parametrize("way", [by_eigenvectors, newton_schulz])
def test_bad_matrices_are_told_from_good_ones_and_stay_finite(way, monkeypatch):
    monkeypatch.setattr("funcnet_plugin.ica.polar.by_eigenvectors", way)  # what a CPU takes
    A = matrices(6, 12, 1)
    good = by_svd(A[[0, 5]])
    A[1, 3, 4], A[2, 0, 0] = torch.nan, torch.inf
    A[3, 7] = A[3, 6]  # singular
    A[4] = 0.0
    U, usable = polar(A)
    assert usable.tolist() == [True, False, False, False, False, True]
    assert torch.isfinite(U).all()
    assert (U[[0, 5]] - good).abs().max() < 1e-9


def test_scale_does_not_matter():
    A = matrices(1, 12, 2)
    for factor in (1e-30, 1e30):
        assert (newton_schulz(A * factor) - by_svd(A)).abs().max() < 1e-9
