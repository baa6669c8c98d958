import pytest
import torch

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import SignalStream, least_bytes, reduce_time, standardise
from tests.ica.test_signals import spectrum

V, ROWS = 120, 40


def filled(X, max_bytes=None, step=37):
    stream = SignalStream(X.shape[1], ROWS, max_bytes)
    for block in X.split(step):
        stream.add(block)
    return stream


def test_signals_that_fit_are_kept_as_they_came():
    X = spectrum(500, V).bfloat16()
    kept = filled(X).finish()
    assert torch.equal(torch.cat(kept.blocks), X)
    expected = standardise(X)
    torch.testing.assert_close(kept.mean, expected.mean)
    torch.testing.assert_close(kept.scale, expected.scale)


def test_truncation_keeps_the_memory_and_the_leading_space():
    X = spectrum(3000, V) + 5.0 * torch.arange(V) / V  # means that must not leak in
    limit = least_bytes(V, ROWS) + 4 * V * 200
    stream, most = SignalStream(V, ROWS, limit), 0
    for block in X.split(37):
        stream.add(block)
        held = sum(b.numel() * b.element_size() for b in stream._blocks)
        most = max(most, held + (0 if stream._factor is None else stream._factor.numel() * 4))
    assert most < limit < X.numel() * 4
    Z = stream.finish()
    exact = standardise(X)
    assert Z.shape == (ROWS, V) and Z.n_tokens == 3000
    torch.testing.assert_close(Z.mean, exact.mean)
    torch.testing.assert_close(Z.scale, exact.scale)
    (C, explained), (found, reached) = reduce_time(exact, 8), reduce_time(Z, 8)
    assert reached == pytest.approx(explained, rel=5e-3)
    bases = [torch.linalg.qr(M.T).Q for M in (C, found)]
    assert torch.linalg.svdvals(bases[0].T @ bases[1]).square().mean() > 0.98


def test_truncation_is_exact_where_the_rows_suffice():
    low_rank = torch.randn(2000, 10) @ torch.randn(10, V) + 3.0
    Z = filled(low_rank, least_bytes(V, ROWS) + 4 * V * 100).finish()
    (C, explained), (found, reached) = reduce_time(standardise(low_rank), 10), reduce_time(Z, 10)
    assert reached == pytest.approx(explained, abs=1e-4)
    torch.testing.assert_close(C.T @ C, found.T @ found, atol=1.0, rtol=1e-3)


def test_too_little_memory_is_refused_with_what_is_needed():
    with pytest.raises(DecompositionError, match=f"at least {least_bytes(V, ROWS):,}"):
        SignalStream(V, ROWS, least_bytes(V, ROWS) - 1)


def test_signals_that_are_not_finite_are_named():
    X = torch.randn(50, V)
    X[3, 5] = float("inf")
    with pytest.raises(DecompositionError, match=r"\[5\]"):
        filled(X).finish()
