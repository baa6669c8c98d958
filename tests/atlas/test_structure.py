"""How networks act together, against numpy and against planted clusters."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.metrics import adjusted_rand_score, silhouette_score

from funcnet_plugin.atlas import read_atlas, write_atlas
from funcnet_plugin.atlas.files import read_courses, read_structure
from funcnet_plugin.atlas.structure import cluster, correlate, partial_correlation, structure_of
from funcnet_plugin.errors import AtlasError
from tests.conftest import make_llama
from tests.surveys import survey_of


def planted(sizes=(7, 5, 9), n_tokens=5000):
    """Networks that follow one course for each cluster, some against it; their cluster."""
    generator = torch.Generator().manual_seed(0)
    of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    shared = torch.randn(n_tokens, len(sizes), generator=generator)
    sign = torch.where(torch.rand(len(of), generator=generator) < 0.3, -1.0, 1.0)
    own = torch.randn(n_tokens, len(of), generator=generator)
    order = torch.randperm(len(of), generator=generator)
    return (shared[:, of] * sign + own)[:, order], of[order]


def test_correlation_is_numpys_over_all_blocks():
    courses, _ = planted()
    found = correlate([courses[:, :8].half(), courses[:, 8:].half()])
    expected = np.corrcoef(courses.half().double().numpy().T)
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    assert found.diagonal().eq(1).all()


def test_a_course_that_never_changes_is_correlated_with_none():
    courses, _ = planted()
    courses[:, 3] = 0.0
    found = structure_of([courses])
    assert found.correlation[3].tolist() == [float(i == 3) for i in range(21)]
    assert bool(torch.isfinite(found.partial).all())


def test_partial_correlation_is_that_of_what_the_others_leave():
    """Of a chain a -> b -> c, a and c are correlated, and not once b is known."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(20000, generator=generator)
    b = a + torch.randn(20000, generator=generator)
    c = b + torch.randn(20000, generator=generator)
    courses = torch.stack([a, b, c], dim=1)
    courses = (courses - courses.mean(0)) / courses.std(0)
    correlation = correlate([courses])
    partial, shrinkage = partial_correlation(correlation, [courses])
    assert correlation[0, 2] > 0.5 and abs(float(partial[0, 2])) < 0.02
    x = courses.double().numpy()
    for i, j, k in ((0, 1, 2), (1, 2, 0)):
        rest = [y - x[:, k] * (y @ x[:, k]) / (x[:, k] @ x[:, k]) for y in (x[:, i], x[:, j])]
        assert float(partial[i, j]) == pytest.approx(np.corrcoef(*rest)[0, 1], abs=5e-3)
    assert shrinkage == pytest.approx(ledoit_wolf_shrinkage(x[::4], assume_centered=True), rel=1e-3)


def test_more_networks_than_tokens_have_a_partial_correlation():
    courses = torch.randn(30, 50, generator=torch.Generator().manual_seed(2))
    found = structure_of([courses])
    assert bool(torch.isfinite(found.partial).all()) and found.facts["shrinkage"] > 0.1
    assert bool((found.partial.abs() <= 1.0 + 1e-6).all())


def test_planted_clusters_are_found_with_their_number():
    courses, true = planted()
    correlation = correlate([courses])
    clusters, silhouette = cluster(correlation)
    assert adjusted_rand_score(true.tolist(), clusters.tolist()) == 1.0
    distance = (1 - correlation.abs()).fill_diagonal_(0).numpy()
    assert silhouette == pytest.approx(
        silhouette_score(distance, clusters.numpy(), metric="precomputed"), abs=1e-4
    )
    assert sorted(set(clusters.tolist())) == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_few_networks_are_one_cluster(n):
    courses, _ = planted((n,), n_tokens=50)
    found = structure_of([courses])
    assert found.clusters.tolist() == [0] * n
    assert found.facts["silhouette"] is None and found.facts["clusters"] == 1
    json.dumps(found.facts, allow_nan=False)


def test_equal_networks_are_one_cluster():
    clusters, silhouette = cluster(torch.ones(12, 12))
    assert clusters.tolist() == [0] * 12 and silhouette is None


@pytest.fixture(scope="module")
def written(texts, tmp_path_factory):
    found = survey_of(make_llama(), texts, strategy="windows", layers_per_window=2)
    folder = tmp_path_factory.mktemp("structure") / "atlas"
    write_atlas(folder, found.atlas, found.courses, found.contexts, found.connectivity)
    return folder


def test_an_atlas_knows_its_structure(written):
    atlas, courses = read_atlas(written), read_courses(written)
    found = read_structure(written, atlas)
    names = list(atlas.networks)
    joined = torch.cat([courses["L0-1"], courses["L2"]], dim=1).double().numpy()
    assert np.allclose(found.correlation.numpy(), np.corrcoef(joined.T), atol=2e-3)
    assert found.partial.shape == (len(names), len(names))
    assert [atlas.networks[name].facts["cluster"] for name in names] == found.clusters.tolist()
    assert atlas.facts["structure"]["clusters"] == len(set(found.clusters.tolist()))


def test_an_atlas_without_it_is_read_and_it_is_found_anew(written, tmp_path):
    new = read_structure(written, read_atlas(written))
    old = shutil.copytree(written, tmp_path / "old")
    (old / "connectivity.safetensors").unlink()
    content = json.loads((old / "atlas.json").read_text())
    del content["files"]["connectivity.safetensors"], content["structure"], content["digest"]
    for network in content["networks"]:
        del network["cluster"]
    (old / "atlas.json").write_text(json.dumps(content))
    found = read_structure(old, read_atlas(old))
    assert torch.allclose(found.correlation, new.correlation, atol=1e-3)
    assert torch.allclose(found.partial, new.partial, atol=1e-3)
    assert found.clusters.tolist() == new.clusters.tolist()


def test_connectivity_that_was_cut_short_is_refused(written, tmp_path):
    spoilt = shutil.copytree(written, tmp_path / "spoilt")
    path = spoilt / "connectivity.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AtlasError, match="was edited or cut short"):
        read_structure(spoilt, read_atlas(spoilt))
