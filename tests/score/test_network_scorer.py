"""What a recipe says of functional networks: refused before anything is measured."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import FuncnetError, RecipeError
from funcnet_plugin.hosts.llmcompressor.functional_network import FunctionalNetworkModifier
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Setting
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


def test_truncated_signals_keep_four_times_the_networks_rows():
    """What `max_memory` must hold says how many: three copies of them, float32."""
    model = make_llama(intermediate_size=4096, num_hidden_layers=1)
    least = 3 * 4 * 8192 * (4 * 128)

    def planned(memory):
        scorer = {"name": "networks", "n_components": 128}
        FunctionalNetworkModifier(pruning_ratio=0.2, scorer=scorer, max_memory=memory).plan(
            model, None
        )

    planned(f"{least // 2**20}MB")
    with pytest.raises(RecipeError, match=rf"need at least {least // 2**20}MB"):
        planned(f"{least // 2**20 - 1}MB")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_memory": "0.001MB"}, "max_memory of 0.001MB cannot hold .* at least 0.026MB"),
        ({"max_memory": "lots"}, "max_memory='lots'"),
        (
            {"scorer": networks() | {"decomposer": "nilearn"}, "max_memory": "1GB"},
            "the decomposer nilearn needs all signals in memory; leave max_memory out",
        ),
        ({"scorer": networks(samples_per_group=21)}, "samples_per_group=21 .* data has 20; give"),
        ({"scorer": networks(n_components=96)}, "n_components=96 needs .* the model has 96"),
        ({"scorer": networks(n_components=90, samples_per_group=2)}, "of 80 tokens x 96 neurons"),
    ],
)
def test_settings_of_the_engine_are_checked_first(fresh, texts, fields, message):
    with pytest.raises(FuncnetError, match=message):
        run(fresh(), texts, recipe(**fields))


def test_an_ungated_mlp_has_one_signal_whatever_the_recipe_says():
    def scorer(*signals):
        return SCORERS.make(networks(signals=list(signals)))

    gated, ungated = (bind(FAMILIES[name].build()).blocks[0] for name in ("llama", "opt"))
    for signals in (("act",), ("up",), ("up", "act")):
        assert scorer(*signals).signals_of(gated) == list(signals)
        assert scorer(*signals).signals_of(ungated) == ["act"]
    with pytest.raises(RecipeError, match="signals names one signal twice"):
        scorer("up", "up").check([gated], None, Setting())


def test_a_decomposer_may_be_given_by_its_parameters_alone():
    scorer = SCORERS.make({"name": "networks", "decomposer": {"n_init": 3}})
    assert scorer.decomposer.name == "canica" and scorer.decomposer.n_init == 3
    again = SCORERS.make(scorer.settings())
    assert again == scorer and again.settings() == scorer.settings()


def test_signals_that_do_not_fit_are_truncated_to_the_rows_of_the_scorer():
    """To fewer, and the networks' space would depend on the order of the tokens."""
    torch.manual_seed(0)
    unit = bind(make_llama()).blocks[0]
    scorer = SCORERS.make(networks(samples_per_group=40))
    limit = 4 * (3 * 2 * unit.width * scorer.n_rows)
    watch = scorer.begin(Setting(max_bytes=limit)).watch(unit)
    for _ in range(30):
        watch._stream.add(torch.randn(7, 2 * unit.width))
    assert len(watch._stream.finish().factor) == 4 * scorer.n_components


def test_max_memory_changes_little(fresh, texts):
    kept = []
    for fields in ({}, {"max_memory": "0.06MB"}):
        text = recipe(scorer=networks({"n_init": 8}), **fields)
        kept.append(bind(run(fresh(), texts, text)).blocks[0].up.weight.detach())
    same = (kept[0][:, None] == kept[1][None]).all(-1).any(1)
    assert same.float().mean() > 0.8


@pytest.mark.parametrize(
    ("given", "n_samples", "aggregate", "starts"),
    [
        ("auto", 3200, "mean", 2),  # 400 groups of 8
        ("auto", 40, "mean", 13),
        ("auto", 8, "mean", 64),
        ("auto", 40, "max", 16),  # more groups do not make a maximum surer
        ("auto", None, "mean", 16),
        (3, 40, "mean", 3),
    ],
)
def test_starts_are_as_many_as_the_groups_leave_to_do(given, n_samples, aggregate, starts):
    scorer = SCORERS.make(networks({"n_init": given}, aggregate=aggregate))
    scoring = scorer.begin(Setting(n_samples=n_samples))
    assert scoring.scorer.decomposer.n_init == starts


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_config_says_how_many_starts_there_were(fresh, texts, strategy):
    scorer = networks({"n_init": "auto"}, strategy=strategy)  # two groups of eight of 20 samples
    model = run(fresh(), texts, recipe(scorer=scorer))
    block = model.config.functional_network
    assert block["measured"]["starts"] == [32] * 3
    assert block["settings"]["scorer"]["decomposer"]["n_init"] == "auto"


def test_starts_that_are_no_number_are_refused():
    with pytest.raises(RecipeError, match="n_init"):
        SCORERS.make(networks({"n_init": "many"}))
    with pytest.raises(RecipeError, match="n_init"):
        SCORERS.make(networks({"n_init": 0}))
