"""What lesions do to a running model, against the same done to its weights."""

import math

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.lesions import lesion_of, select
from funcnet_plugin.lesions.controls import random_like
from tests.conftest import make_llama
from tests.hosting import logits
from tests.surveys import survey_of


@pytest.fixture(scope="module")
def atlas(texts):
    return survey_of(make_llama(), texts, cut=1.0).atlas  # random maps have no long tails


def with_lesion(lesion) -> torch.Tensor:
    model = make_llama()
    handles = lesion.apply(bind(model).blocks)
    found = logits(model)
    for handle in handles:
        handle.remove()
    assert torch.equal(logits(model), logits(make_llama()))
    return found


def by_hand(neurons, change) -> torch.Tensor:
    """The logits where `change` was applied to what each down projection is given."""
    model = make_llama()
    for layer, block in enumerate(model.model.layers):

        def hook(module, args, layer=layer):
            activity = args[0].clone()
            change(activity, layer, neurons.get(layer, torch.tensor([], dtype=torch.long)))
            return (activity,)

        block.mlp.down_proj.register_forward_pre_hook(hook)
    return logits(model)


def test_zero_is_what_cutting_the_columns_gives(atlas):
    lesion = lesion_of(atlas, ["L0.N1", "L2.N3"], threshold=1.2)
    assert set(lesion.neurons) == {0, 2} and lesion.n_neurons > 2
    model = make_llama()
    with torch.no_grad():
        for layer, neurons in lesion.neurons.items():
            model.model.layers[layer].mlp.down_proj.weight[:, neurons] = 0.0
    assert torch.allclose(with_lesion(lesion), logits(model), atol=1e-5)
    assert not torch.allclose(with_lesion(lesion), logits(make_llama()), atol=1e-3)


def test_mean_holds_neurons_where_they_are_on_average(atlas):
    lesion = lesion_of(atlas, ["L1.N0"], "mean", threshold=1.2)

    def hold(activity, layer, neurons):
        activity[..., neurons] = atlas.means[layer][neurons]

    assert torch.allclose(with_lesion(lesion), by_hand(lesion.neurons, hold), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "gain", "add"),
    [({}, 2.0, 0.0), ({"gain": -1.5}, -1.5, 0.0), ({"add": 0.7}, 1.0, 0.7),
     ({"gain": 0.5, "add": -0.2}, 0.5, -0.2)],
)  # fmt: skip
def test_amplify_multiplies_and_adds(atlas, given, gain, add):
    lesion = lesion_of(atlas, ["L1.N0", "L1.N2"], "amplify", threshold=1.2, **given)

    def amplify(activity, layer, neurons):
        activity[..., neurons] = activity[..., neurons] * gain + add

    assert torch.allclose(with_lesion(lesion), by_hand(lesion.neurons, amplify), atol=1e-5)


def test_keep_silences_all_others_of_all_layers(atlas):
    lesion = lesion_of(atlas, ["L1.N0", "L1.N2"], "keep", threshold=1.2)

    def keep(activity, layer, neurons):
        others = torch.ones(48, dtype=torch.bool)
        others[neurons] = False
        activity[..., others] = 0.0

    assert torch.allclose(with_lesion(lesion), by_hand(lesion.neurons, keep), atol=1e-5)


def test_keep_leaves_layers_alone_that_the_atlas_does_not_know(texts):
    from funcnet_plugin.measure.text import Text
    from funcnet_plugin.score.networks import Networks
    from funcnet_plugin.score.scorer import Setting
    from funcnet_plugin.survey import survey
    from tests.hosting import loader
    from tests.surveys import PARAMETERS

    model = make_llama()
    units = bind(model).blocks
    scorer = Networks(**PARAMETERS, decomposer={"n_init": 2})
    text = Text.read(loader(texts))
    part = survey(model, units, text, scorer, Setting(), wanted=[units[1]], cut=1.0).atlas
    lesion = lesion_of(part, ["L1.N0"], "keep", threshold=1.2)
    assert lesion.share == lesion.n_neurons / 48

    def keep(activity, layer, neurons):
        if layer == 1:
            others = torch.ones(48, dtype=torch.bool)
            others[neurons] = False
            activity[..., others] = 0.0

    assert torch.allclose(with_lesion(lesion), by_hand(lesion.neurons, keep), atol=1e-5)


def test_controls_are_as_many_of_each_layer_and_others_with_each_seed(atlas):
    neurons = lesion_of(atlas, ["L0.N1", "L2.N3"], threshold=1.2).neurons
    widths = {layer: len(mean) for layer, mean in atlas.means.items()}
    drawn = [random_like(neurons, widths, seed) for seed in range(20)]
    for control in drawn:
        assert {k: len(v) for k, v in control.items()} == {k: len(v) for k, v in neurons.items()}
        for found in control.values():
            assert (
                found.tolist() == sorted(set(found.tolist()))
                and 0 <= found.min() <= found.max() < 48
            )
    again = random_like(neurons, widths, 0)
    assert all(torch.equal(again[layer], drawn[0][layer]) for layer in again)
    assert len({tuple(control[0].tolist()) for control in drawn}) > 15
    every = torch.cat([control[0] for control in drawn]).unique()
    assert len(every) > 40  # of 48: any neuron may be drawn


def test_sets_of_networks(atlas):
    networks = list(atlas.networks.values())
    assert select(atlas, "L1.N2") == ["L1.N2"]
    assert select(atlas, "L1") == [f"L1.N{k}" for k in range(6)]
    assert select(atlas, "all") == [n.name for n in networks]
    assert select(atlas, "L1.N2+L0.N1 + L1.N2") == ["L1.N2", "L0.N1"]
    strong = select(atlas, "strongest:4")
    least = min(atlas.networks[name].facts["variance"] for name in strong)
    assert len(strong) == 4
    assert all(n.facts["variance"] <= least for n in networks if n.name not in strong)
    large = select(atlas, "largest:3")
    members = {name: sum(map(len, atlas.neurons([name]).values())) for name in atlas.networks}
    assert sorted(members.values())[-3:] == sorted(members[name] for name in large)
    (sparse,) = select(atlas, "sparsest:1")
    assert atlas.networks[sparse].facts["kurtosis"] == max(n.facts["kurtosis"] for n in networks)
    stable = select(atlas, "stable:0.6")
    assert stable == [n.name for n in networks if n.facts["stability_groups"] >= 0.6]
    assert 0 < len(stable) < 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L1.N6", "no network 'L1.N6'; L1 has L1.N0 to L1.N5"),
        ("L9.N0", "no network 'L9.N0'; its networks stand under L0 to L2"),
        ("L9", "'L9' names no networks; write networks as L3.N17"),
        ("", "'' names no networks"),
        ("L1.N0++L1.N1", "'' names no networks"),
        ("strongest:0", "'strongest:0' names no networks"),
        ("strongest:19", "asks for 19 networks and the atlas has 18"),
        ("strongest:-1", "'strongest:-1' names no networks"),
        ("best:3", "'best:3' names no networks"),
        ("stable:1", "no network is as stable as 1; the most stable has 0"),
        ("stable:7", "'stable:7' names no networks"),
    ],
)
def test_what_names_no_networks_is_refused(atlas, text, message):
    with pytest.raises(AtlasError, match=message) as error:
        select(atlas, text)
    assert "\n" not in str(error.value)


def test_stability_cannot_be_asked_of_one_group(texts):
    atlas = survey_of(make_llama(), texts, samples_per_group=20).atlas
    with pytest.raises(AtlasError, match="made of one group of samples"):
        select(atlas, "stable:0.5")


@pytest.mark.parametrize(
    ("networks", "arguments", "message"),
    [
        (["L0.N0"], {"threshold": 50.0}, "L0.N0 has no members with entries of 50 and more"),
        (["L0.N0"], {"threshold": 0.5}, "hold entries of 1 and more"),
        (["L0.N0"], {"threshold": math.nan}, "hold entries of 1 and more"),
        (["L0.N0"], {"mode": "remove"}, "no lesion mode 'remove'; choose one of zero, mean, "),
        (["L0.N0"], {"mode": "zero", "gain": 2.0}, "gain and add are for mode amplify"),
        (["L0.N0"], {"mode": "amplify", "gain": math.inf}, "must be finite"),
        ([], {}, "has no members"),
    ],
)
def test_a_lesion_that_cannot_be_is_refused(atlas, networks, arguments, message):
    with pytest.raises(AtlasError, match=message):
        lesion_of(atlas, networks, **arguments)


@pytest.mark.parametrize("mode", ["zero", "mean", "keep"])
def test_a_lesion_of_everything_is_refused(texts, mode):
    atlas = survey_of(make_llama(), texts, cut=0.0).atlas
    with pytest.raises(AtlasError, match=r"L0.N0\+L0.N1\+L0.N2\+... \(18 networks\) has all 144"):
        lesion_of(atlas, list(atlas.networks), mode, threshold=0.0)
    lesion_of(atlas, list(atlas.networks), "amplify", threshold=0.0)
