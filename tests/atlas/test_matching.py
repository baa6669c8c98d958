"""The same networks in two atlases."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from funcnet_plugin import cli
from funcnet_plugin.atlas import Atlas, Network, SparseMaps, write_atlas
from funcnet_plugin.atlas.matching import kept_alike, match
from funcnet_plugin.checkpoints.block import write_kept
from funcnet_plugin.errors import AtlasError

WIDTHS = [60, 60]


def atlas_of(maps: dict[int, torch.Tensor], widths=WIDTHS) -> Atlas:
    """An atlas with the maps (k, 2 * width) of each layer, entries of 2 and more."""
    networks = {
        f"L{layer}.N{k}": Network(f"L{layer}.N{k}", f"L{layer}", k, {"layers": {str(layer): {}}})
        for layer, of in maps.items() for k in range(len(of))
    }  # fmt: skip
    sparse = {
        f"L{layer}": SparseMaps.of(of, {layer: slice(None)}, dict(enumerate(widths)), 2.0)
        for layer, of in maps.items()
    }
    scores = {layer: of.abs().amax(0).view(2, -1).amax(0).double() for layer, of in maps.items()}
    facts = {
        "model": {"widths": list(widths)},
        "settings": {"cut": 2.0, "scorer": {"signals": ["act", "up"]}},
        "blocks": [{"name": f"L{layer}"} for layer in maps],
    }
    means = {layer: torch.zeros(widths[layer]) for layer in maps}
    return Atlas(facts, sparse, networks, scores, means)


def long_tailed(seed: int) -> dict[int, torch.Tensor]:
    """Maps of few large entries each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: torch.where(
            torch.rand(5, 120, generator=generator) < 0.1,
            4.0 + torch.rand(5, 120, generator=generator),
            torch.zeros(5, 120),
        )
        for layer in range(2)
    }


@pytest.fixture
def maps():
    return long_tailed(0)


def test_networks_are_found_again_in_another_order_and_with_another_sign(maps):
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = {layer: -of[order] for layer, of in maps.items()}
    found = match(atlas_of(maps), atlas_of(turned))
    for one in found.matches:
        block, number = one.name.split(".N")
        assert one.other == f"{block}.N{order.tolist().index(int(number))}"
        assert one.similarity == pytest.approx(1.0) and one.dice == 1.0
    assert found.similarity == pytest.approx(1.0) and found.chance < 0.5


def test_similarity_is_the_cosine_and_the_whole_assignment_is_the_best(maps):
    from itertools import permutations

    other = long_tailed(1)
    found = match(atlas_of(maps), atlas_of(other))
    for layer in range(2):
        unit = [of[layer] / of[layer].norm(dim=1, keepdim=True) for of in (maps, other)]
        cosines = (unit[0] @ unit[1].T).abs().numpy()
        mine = [m for m in found.matches if m.name.startswith(f"L{layer}.")]
        for m in mine:
            i, j = int(m.name[-1]), int(m.other[-1])
            assert m.similarity == pytest.approx(cosines[i, j], abs=1e-6)
        best = max(cosines[range(5), list(p)].sum() for p in permutations(range(5)))
        assert sum(m.similarity for m in mine) == pytest.approx(best, abs=1e-5)


def test_two_atlases_without_anything_in_common_are_as_alike_as_shuffled_ones():
    found = match(atlas_of(long_tailed(2)), atlas_of(long_tailed(3)))
    assert found.similarity == pytest.approx(found.chance, abs=0.08)


def test_dice_is_of_the_members(maps):
    other = {layer: of.clone() for layer, of in maps.items()}
    gone = other[0][2].nonzero().flatten()[::2]
    other[0][2, gone] = 0.0
    found = {m.name: m for m in match(atlas_of(maps), atlas_of(other)).matches}
    a = set((maps[0][2].nonzero().flatten() % 60).tolist())
    b = set((other[0][2].nonzero().flatten() % 60).tolist())
    assert found["L0.N2"].dice == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert found["L0.N1"].dice == 1.0


def test_networks_of_a_cut_model_are_found_in_what_it_kept(maps):
    keep = [torch.arange(0, 60, 2), torch.arange(10, 40)]
    cut = {
        layer: torch.cat([of[:, :60][:, keep[layer]], of[:, 60:][:, keep[layer]]], dim=1)
        for layer, of in maps.items()
    }
    pruned = atlas_of(cut, widths=[30, 30])
    found = match(atlas_of(maps), pruned, [k.tolist() for k in keep])
    for m in found.matches:
        assert m.other == m.name
        layer, k = int(m.name[1]), int(m.name[-1])
        expected = cut[layer][k].norm() / maps[layer][k].norm()
        assert m.similarity == pytest.approx(float(expected), abs=1e-6)


def test_neurons_that_both_would_keep(maps):
    mine, other = atlas_of(maps), atlas_of(long_tailed(1))
    assert kept_alike(mine, mine, 0.3) == 1.0
    shares = []
    for layer in range(2):
        a, b = (set(x.scores[layer].topk(42).indices.tolist()) for x in (mine, other))
        shares.append(len(a & b) / 42)
    assert kept_alike(mine, other, 0.3) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize(
    ("change", "kept", "message"),
    [
        ({"widths": [60, 40]}, None, "one atlas is of a model with layers of 60 neurons and the "),
        ({}, [[0, 1], [0]], "the kept neurons are of layers with 1, 2 neurons"),
        ({}, [list(range(60))], "the kept neurons are of layers with 60 neurons"),
    ],
)
def test_atlases_that_do_not_go_together(maps, change, kept, message):
    other = atlas_of(maps)
    other = replace(other, facts=other.facts | {"model": {"widths": WIDTHS} | change})
    with pytest.raises(AtlasError, match=message):
        match(atlas_of(maps), other, kept)


def test_blocks_must_be_the_same(maps):
    first, second = ({i: maps[i]} for i in range(2))
    with pytest.raises(AtlasError, match="one atlas has blocks like L0 and the other like L1"):
        match(atlas_of(first), atlas_of(second))
    with pytest.raises(AtlasError, match="no layer in common"):
        kept_alike(atlas_of(first), atlas_of(second), 0.2)


def test_the_command(maps, tmp_path):
    write_atlas(tmp_path / "a", atlas_of(maps), {}, [{"network": "L0.N0"}], {})
    keep = [list(range(60)), list(range(60))]
    write_atlas(tmp_path / "b", atlas_of(long_tailed(1)), {}, [{"network": "L0.N0"}], {})
    done = CliRunner().invoke(cli.app, ["match", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    assert "10 networks matched: similarity 0." in done.output
    assert "neurons that both would keep at 0.2: " in done.output
    write_kept(tmp_path, WIDTHS, keep)
    done = CliRunner().invoke(
        cli.app,
        ["match", str(tmp_path / "a"), str(tmp_path / "a"), "--kept", str(tmp_path), "--json"],
    )
    found = json.loads(done.stdout)
    assert found["similarity"] == pytest.approx(1.0) and found["kept_alike"] is None
    assert [m["name"] for m in found["matches"]] == [m["other"] for m in found["matches"]]
