import pytest
import torch

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import LayeredSignals, canica, reduce_time, standardise, whiten
from funcnet_plugin.ica.picard import picard
from tests.ica.sources import correlation
from tests.ica.test_signals import spectrum


def layers(T=400, sizes=(60, 90, 40)):
    X = spectrum(T, sum(sizes)) + 2.0
    return list(X.split(sizes, dim=1))


def layered(parts, n_rows):
    group = LayeredSignals(n_rows)
    for i, part in enumerate(parts):
        group.add(i, standardise(part))
    return group


def test_with_all_rows_it_is_the_reduction_of_the_whole_matrix():
    parts = layers()
    C, columns, explained = layered(parts, n_rows=400).reduce(12)
    whole, expected = reduce_time(standardise(torch.cat(parts, dim=1)), 12, exact=True)
    assert explained == pytest.approx(expected, rel=1e-4)
    assert [columns[i] for i in range(3)] == [slice(0, 60), slice(60, 150), slice(150, 190)]
    torch.testing.assert_close(C.T @ C, whole.T @ whole, atol=0.5, rtol=1e-2)


def test_truncation_keeps_the_leading_space_and_the_memory():
    parts = layers()
    group = layered(parts, n_rows=36)
    assert group._basis.shape == (400, 36)
    assert sum(B.numel() for B in group._coordinates.values()) == 36 * 190
    C, _, explained = group.reduce(12)
    whole, expected = reduce_time(standardise(torch.cat(parts, dim=1)), 12, exact=True)
    assert explained == pytest.approx(expected, rel=0.02)
    bases = [torch.linalg.qr(M.T).Q for M in (C, whole)]
    assert torch.linalg.svdvals(bases[0].T @ bases[1]).square().mean() > 0.97


def test_layers_that_saw_other_tokens_are_refused():
    group = LayeredSignals(5)
    group.add(0, standardise(torch.randn(50, 20)))
    with pytest.raises(DecompositionError, match=r"layer 1 saw 40 tokens .* before it 50"):
        group.add(1, standardise(torch.randn(40, 20)))


def test_a_network_that_spans_two_layers_is_found_as_one():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 3000, generator=generator) ** 3
    maps[0, 1000:2000] = 0.0  # in the first and the last third
    maps[1, :1000] = maps[1, 2000:] = 0.0  # in the second only
    courses = torch.randn(900, 4, generator=generator)
    X = courses @ maps + torch.randn(900, 3000, generator=generator) * 4.0
    C, columns, _ = layered(list(X.split(1000, dim=1)), n_rows=12).reduce(4)
    white = whiten(C)
    found = picard(white).W[0] @ white
    match = correlation(found, maps / X.std(0, correction=0))
    assert sorted(match.argmax(0).tolist()) == [0, 1, 2, 3] and match.amax(0).min() > 0.9
    whole = canica(X, 4).maps[0]
    assert correlation(found, whole).amax(1).min() > 0.99
    spread = torch.stack([found[:, columns[i]].square().sum(1) for i in range(3)])
    across = (spread.amax(0) / spread.sum(0))[match.argmax(0)]
    assert across[0] < 0.7 and across[1] > 0.8
