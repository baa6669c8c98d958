"""What a survey says of networks, against the same worked out by hand."""

import json

import numpy as np
import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.atlas.atlas import MEMBER
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.groups import GroupNetworks, map_scores
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.scorer import Setting
from funcnet_plugin.survey import survey
from funcnet_plugin.survey.blocks import put_together
from funcnet_plugin.survey.build import CUT
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader
from tests.survey.conftest import standardised_signals
from tests.surveys import PARAMETERS, survey_of


def whole_maps(surveyed) -> dict[str, torch.Tensor]:
    """Block -> (k, signals)."""
    maps = {}
    for block, sparse in surveyed.found.atlas.maps.items():
        layers = next(b for b in surveyed.found.atlas.facts["blocks"] if b["name"] == block)
        starts = {layer: 2 * 48 * i for i, layer in enumerate(layers["layers"])}
        dense = torch.zeros(len(sparse), 2 * 48 * len(starts))
        for k in range(len(sparse)):
            e = sparse.of_network(k)
            start = torch.tensor([starts[i] for i in e.layer.tolist()])
            dense[k, start + 48 * e.signal + e.neuron] = e.z
        maps[block] = dense
    return maps


def joined(surveyed, block: str) -> torch.Tensor:
    layers = next(b for b in surveyed.found.atlas.facts["blocks"] if b["name"] == block)["layers"]
    return torch.cat([surveyed.signals[layer] for layer in layers], dim=1)


def test_blocks_are_layers_or_all_of_them(surveyed):
    atlas = surveyed.found.atlas
    strategy = atlas.facts["settings"]["scorer"]["strategy"]
    names = {"local": ["L0", "L1", "L2"], "windows": ["L0-1", "L2"], "global": ["ALL"]}
    assert list(atlas.blocks) == names[strategy]
    for name, networks in atlas.blocks.items():
        assert [n.name for n in networks] == [f"{name}.N{i}" for i in range(6)]


def test_a_course_is_what_best_fits_the_signals_of_every_token(surveyed):
    for block, maps in whole_maps(surveyed).items():
        signals = joined(surveyed, block)
        courses = surveyed.found.courses[block].double()
        assert torch.allclose(courses.mean(0), torch.zeros(6, dtype=torch.float64), atol=2e-3)
        assert torch.allclose(courses.std(0), torch.ones(6, dtype=torch.float64), atol=2e-3)
        for k in range(6):
            fit = (signals @ maps[k].double()).numpy()  # maps are orthogonal
            assert np.corrcoef(fit, courses[:, k].numpy())[0, 1] > 0.9999


def test_the_share_of_the_variance_is_what_is_lost_without_the_network(surveyed):
    for block, maps in whole_maps(surveyed).items():
        signals, maps = joined(surveyed, block), maps.double()
        shares = [network.facts["variance"] for network in surveyed.found.atlas.blocks[block]]
        assert shares == sorted(shares, reverse=True) and sum(shares) < 1.0
        for k, share in enumerate(shares):
            course = signals @ maps[k] / maps.shape[1]
            rest = signals - torch.outer(course - course.mean(), maps[k])
            lost = 1.0 - rest.square().mean() / signals.square().mean()
            assert float(lost) == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("decomposer", ["pca", "dictionary", "nmf", "autoencoder"])
def test_courses_of_maps_that_overlap_fit_the_signals_together(texts, decomposer):
    model = make_llama()
    found = survey_of(model, texts, cut=0.0, decomposer=decomposer)
    signals = standardised_signals(model, loader(texts))
    for layer, networks in enumerate(found.atlas.blocks.values()):
        maps = torch.zeros(len(networks), 96, dtype=torch.float64)
        for k, network in enumerate(networks):
            e = found.atlas.entries(network.name)
            maps[k, 48 * e.signal + e.neuron] = e.z.double()
        fit = torch.linalg.lstsq(maps.T, signals[layer].T).solution.T  # (tokens, k)
        courses = found.courses[f"L{layer}"].numpy()
        for k in range(len(networks)):
            assert np.corrcoef(fit[:, k].numpy(), courses[:, k])[0, 1] > 0.999


def test_density_position_and_frequency_are_of_the_courses(surveyed):
    samples = surveyed.text.samples
    tokens = np.array([token for sample in samples for token in sample])
    position = np.array([i for sample in samples for i in range(len(sample))])
    counts = np.bincount(tokens)
    for block, networks in surveyed.found.atlas.blocks.items():
        courses = surveyed.found.courses[block].float().numpy()
        for k, network in enumerate(networks):
            course = courses[:, k]
            facts = network.facts
            assert facts["density"] == pytest.approx((course > 2.0).mean(), abs=2e-3)
            expected = np.corrcoef(course, position)[0, 1]
            assert facts["position"] == pytest.approx(expected, abs=2e-3)
            expected = np.corrcoef(course, np.log(counts[tokens]))[0, 1]
            assert facts["frequency"] == pytest.approx(expected, abs=2e-3)


def test_contexts_are_the_extremes_of_the_courses(surveyed):
    lengths = [len(sample) for sample in surveyed.text.samples]
    for block in surveyed.found.atlas.blocks:
        courses = surveyed.found.courses[block].float()
        for k in range(6):
            rows = {
                r["rank"]: r for r in surveyed.found.contexts if r["network"] == f"{block}.N{k}"
            }
            assert sorted(rows) == [*range(-8, 0), *range(1, 9)]
            highest, lowest = rows[1], rows[-1]
            assert highest["activity"] == pytest.approx(float(courses[:, k].max()), abs=5e-3)
            assert lowest["activity"] == pytest.approx(float(courses[:, k].min()), abs=5e-3)
            place = sum(lengths[: highest["sample"]]) + highest["position"]
            assert courses[place, k] == courses[:, k].max()
            token = surveyed.text.samples[highest["sample"]][highest["position"]]
            assert highest["token"] == str(token) == highest["tokens"][highest["at"]]
            assert highest["activities"][highest["at"]] == pytest.approx(
                highest["activity"], abs=1e-3
            )
            assert len({rows[i]["sample"] for i in range(1, 9)}) == 8


def test_mean_activities_are_those_of_the_whole_text(surveyed):
    seen = {}
    handles = [
        block.output.register_forward_pre_hook(
            lambda m, a, i=block.index: seen.setdefault(i, []).append(a[0][0].detach())
        )
        for block in bind(surveyed.model).blocks
    ]
    for batch in surveyed.text.batches:
        surveyed.model(**batch)
    for handle in handles:
        handle.remove()
    for layer, mean in surveyed.found.atlas.means.items():
        assert torch.allclose(mean, torch.cat(seen[layer]).mean(0), atol=1e-5)


def test_members_and_energy_by_layer_are_those_of_the_maps(surveyed):
    atlas = surveyed.found.atlas
    for name, network in atlas.networks.items():
        members = atlas.neurons([name])
        energies = [facts["energy"] for facts in network.facts["layers"].values()]
        assert sum(energies) == pytest.approx(1.0, abs=1e-6)
        for layer, facts in network.facts["layers"].items():
            assert facts["members"] == len(members.get(int(layer), []))
        entries = atlas.entries(name)
        assert len(entries.z) == 96 * len(network.facts["layers"])
        assert float(entries.z.square().mean()) == pytest.approx(1.0, abs=1e-3)
        assert sum(map(len, members.values())) <= int((entries.z.abs() >= MEMBER).sum())


@torch.no_grad()
def test_words_are_what_the_logits_gain_when_a_network_acts(surveyed):
    """A step of the neurons along the map, taken by hand through down projection and head."""
    model, atlas = surveyed.model, surveyed.found.atlas
    maps = whole_maps(surveyed)
    blocks = bind(model).blocks
    raw = {b.index: ([], []) for b in blocks}
    handles = []
    for b in blocks:
        for module, kept in zip((b.activation, b.up), raw[b.index], strict=True):
            handles.append(module.register_forward_hook(lambda m, a, o, k=kept: k.append(o[0])))
    last = []
    handles.append(model.model.norm.register_forward_pre_hook(lambda m, a: last.append(a[0][0])))
    for batch in surveyed.text.batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    typical = torch.cat(last).mean(0)

    def behind(state: torch.Tensor) -> torch.Tensor:
        return model.lm_head(model.model.norm(state))

    agree, total = 0, 0
    for block, found in maps.items():
        layers = next(b for b in atlas.facts["blocks"] if b["name"] == block)["layers"]
        for k in range(len(found)):
            step = torch.zeros(24)
            for i, layer in enumerate(layers):
                act, up = (torch.cat(part) for part in raw[layer])
                z_act, z_up = found[k, 96 * i : 96 * (i + 1)].split(48)
                change = z_act * act.std(0, correction=0) * up.mean(0)
                change += z_up * up.std(0, correction=0) * act.mean(0)
                step += change @ blocks[layer].down.weight.T
            _, gain = torch.autograd.functional.jvp(behind, typical, step)
            named = atlas.networks[f"{block}.N{k}"].facts
            expected = {str(i) for i in gain.topk(10).indices.tolist()}
            agree += len(expected & set(named["raises"]))
            total += 10
    assert agree >= 0.97 * total  # a finite step may turn neighbours around


def test_one_group_says_nothing_of_other_text(texts):
    found = survey_of(make_llama(), texts, starts=1, samples_per_group=20)
    facts = found.atlas.networks["L0.N0"].facts
    assert facts["stability_groups"] is None and facts["stability_starts"] is None
    json.dumps(facts, allow_nan=False)


def test_the_group_that_stands_for_all_is_the_one_most_like_the_others():
    generator = torch.Generator().manual_seed(0)
    true = torch.linalg.qr(torch.randn(400, 5, generator=generator))[0].T * 20

    def group(noise: float) -> GroupNetworks:
        maps = true + noise * torch.randn(5, 400, generator=generator)
        maps = (maps - maps.mean(1, keepdim=True)) / maps.std(1, keepdim=True, correction=0)
        return GroupNetworks(maps[torch.randperm(5, generator=generator)], {0: slice(None)},
                             torch.full((5,), 0.5), noise)  # fmt: skip

    found = put_together("L0", [group(1.0), group(0.2), group(1.0)])
    assert found.explained == 0.2
    assert bool((found.between_groups > 0.6).all()) and bool((found.between_groups < 1.0).all())


def test_scores_are_those_of_the_maps_of_one_group_and_start(texts):
    found = survey_of(make_llama(), texts, starts=1, cut=0.0, samples_per_group=20)
    for layer in range(3):
        maps = torch.zeros(6, 96)
        for k in range(6):
            e = found.atlas.entries(f"L{layer}.N{k}")
            maps[k, 48 * e.signal + e.neuron] = e.z
        assert torch.equal(found.atlas.scores[layer], map_scores(maps[None], 2))


def test_small_entries_are_left_out(texts):
    found, whole = survey_of(make_llama(), texts), survey_of(make_llama(), texts, cut=0.0)
    for name in found.atlas.networks:
        kept, every = found.atlas.entries(name), whole.atlas.entries(name)
        large = every.z.abs() >= CUT
        assert torch.equal(kept.z, every.z[large]) and torch.equal(kept.neuron, every.neuron[large])


def test_layers_may_be_left_out(texts):
    model, text = make_llama(), Text.read(loader(texts))
    units, scorer = bind(model).blocks, Networks(**PARAMETERS, decomposer={"n_init": 2})
    some = survey(model, units, text, scorer, Setting(), wanted=[units[1]])
    every = survey_of(model, texts)
    assert list(some.atlas.blocks) == ["L1"] and list(some.atlas.scores) == [1]
    mine, other = (dict(found.atlas.networks["L1.N0"].facts) for found in (some, every))
    assert mine.pop("cluster") == 0 and other.pop("cluster") is not None  # of other networks
    assert mine == other
    assert some.atlas.widths == [48, 48, 48]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_architecture_can_be_surveyed(family, texts):
    model = FAMILIES[family].build().eval()
    found = survey_of(model, texts, starts=1)
    units = bind(model).blocks
    assert list(found.atlas.blocks) == [f"L{unit.index}" for unit in units]
    assert {layer: len(m) for layer, m in found.atlas.means.items()} == {
        unit.index: unit.width for unit in units
    }
    first = next(iter(found.atlas.networks.values())).facts
    assert len(set(first["raises"])) == len(set(first["lowers"])) == 10
    assert not set(first["raises"]) & set(first["lowers"])
