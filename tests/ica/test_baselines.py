"""Decompositions that networks are compared with."""

import pytest
import torch

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import SignalStream, canica, standardise
from funcnet_plugin.ica.parts import DECOMPOSERS
from tests.ica.sources import correlation, planted

NAMES = ("pca", "dictionary", "nmf", "autoencoder")


@pytest.fixture(scope="module")
def signals():
    X, truth = planted(k=6, neurons=1000, tokens=4000, noise=8.0)
    return standardise(X), truth


@pytest.fixture(scope="module")
def found(signals):
    return {name: DECOMPOSERS.make(name).decompose(signals[0], 6, 3) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_a_decomposition(signals, found, name):
    d = found[name]
    assert d.maps.shape == (1, 6, 1000) and d.maps.dtype == torch.float32
    assert d.maps.mean(-1).abs().max() < 1e-5
    assert torch.allclose(d.maps.std(-1, correction=0), torch.ones(1, 6), atol=1e-5)
    assert (d.maps.amax(-1) >= -d.maps.amin(-1)).all()
    assert d.stability.shape == (1, 6) and d.stability.isnan().all() and len(d.runs) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_the_global_generator_stays(signals, found, name):
    before = torch.get_rng_state()
    again = DECOMPOSERS.make(name).decompose(signals[0], 6, 3)
    assert torch.equal(again.maps, found[name].maps)
    assert torch.equal(torch.get_rng_state(), before)
    other = DECOMPOSERS.make(name).decompose(signals[0], 6, 4)
    assert torch.equal(other.maps, again.maps) == (name == "pca")  # it has nothing to draw


def test_none_finds_planted_networks_as_an_ica_does(signals, found):
    truth = signals[1]

    def worst(maps) -> float:
        return float(correlation(maps, truth).max(0).values.min())

    best = worst(canica(signals[0], 6).maps[0])
    assert best > 0.95
    assert all(worst(d.maps[0]) < best - 0.05 for d in found.values())


def test_principal_components_explain_most_and_span_what_an_ica_spans(signals, found):
    most = found["pca"].explained_variance
    assert found["dictionary"].explained_variance == pytest.approx(most)
    for name in ("nmf", "autoencoder"):
        assert 0.0 < found[name].explained_variance < most
    maps, ica = found["pca"].maps[0].double(), canica(signals[0], 6).maps[0].double()
    gram = maps @ maps.T / maps.shape[1]
    assert torch.allclose(gram, torch.eye(6, dtype=torch.float64), atol=1e-3)
    rest = ica - (ica @ maps.T / maps.shape[1]) @ maps
    assert rest.square().mean() < 1e-3


def test_explained_variance_is_what_is_left_by_regression(signals, found):
    Z = torch.cat(list(signals[0].rows())).double()
    for name in ("nmf", "autoencoder"):
        maps = found[name].maps[0].double()
        maps = torch.cat([maps, torch.ones(1, maps.shape[1], dtype=torch.float64)])
        rest = Z - torch.linalg.lstsq(maps.T, Z.T).solution.T @ maps
        share = 1.0 - float(rest.square().sum() / Z.square().sum())
        assert found[name].explained_variance == pytest.approx(share, abs=5e-3)


def test_a_dictionary_is_sparser_with_a_larger_alpha(signals):
    def empty(alpha: float) -> float:
        part = DECOMPOSERS.make({"name": "dictionary", "alpha": alpha})
        maps = part.decompose(signals[0], 6, 0).maps[0]
        common = maps.mode(1).values[:, None]  # what entries of nothing became
        return float((maps == common).float().mean())

    assert empty(0.1) < empty(0.5) < empty(1.0) < 1.0


def test_an_autoencoder_with_a_dearer_code_explains_less(signals):
    def explained(sparsity: float) -> float:
        part = DECOMPOSERS.make({"name": "autoencoder", "sparsity": sparsity})
        return part.decompose(signals[0], 6, 0).explained_variance

    assert explained(1.0) < explained(0.0)


@pytest.mark.parametrize("name", ["nmf", "autoencoder"])
def test_what_cannot_be_decomposed_is_refused(signals, name):
    part = DECOMPOSERS.make(name)
    with pytest.raises(DecompositionError, match="n_components=2000 does not fit"):
        part.decompose(signals[0], 2000, 0)
    stream = SignalStream(1000, 24, 300_000)
    X, _ = planted(k=6, neurons=1000, tokens=1000, noise=4.0)
    for rows in X.float().split(100):
        stream.add(rows)
    with pytest.raises(DecompositionError, match=f"the decomposer {name} needs all signals"):
        part.decompose(stream.finish(), 6, 0)


def test_a_map_of_nothing_is_left_out_and_nothing_else_is_refused(signals):
    part = DECOMPOSERS.make({"name": "dictionary", "alpha": 1e6})
    with pytest.raises(DecompositionError, match="gave no map that differs between neurons"):
        part.decompose(signals[0], 6, 0)
