"""Scores from the maps of groups, which are given here and not found."""

from typing import Any

import pytest
import torch
from pydantic import PrivateAttr

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.budget import select
from funcnet_plugin.errors import CalibrationError, RecipeError
from funcnet_plugin.ica import Decomposition, RunReport
from funcnet_plugin.ica.decomposer import Decomposer
from funcnet_plugin.measure.sample import Sample
from funcnet_plugin.score.groups import map_scores
from funcnet_plugin.score.local_networks import NetworkWatch
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Setting
from tests.conftest import make_llama

WIDTH, K = 50, 6


class Given(Decomposer):
    """Gives the maps of one group after another, and keeps what it was to decompose."""

    name = "given"

    maps: list[Any]
    _seen: list[torch.Tensor] = PrivateAttr(default_factory=list)

    def decompose(self, signals, n_components, seed):
        maps = self.maps[len(self._seen)]
        self._seen.append(torch.cat(signals.blocks))
        run = RunReport(True, 1, 0.0)
        return Decomposition(maps, (run,), 0.5, torch.ones(len(maps), K))


def maps_of_groups(n_groups: int, n_runs: int = 1):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n_runs, K, 2 * WIDTH, generator=generator) * 2 for _ in range(n_groups)]


def sample_of(signals) -> Sample:
    """A sample with these (tokens, 2 * WIDTH) as its signals."""
    act, up = signals.split(WIDTH, dim=1)
    return Sample({"act": act, "up": up}, act * up)


def watching(groups, samples_per_group=2, **parameters) -> NetworkWatch:
    scorer = Networks(
        n_components=K,
        samples_per_group=samples_per_group,
        decomposer=Given(maps=groups),
        **parameters,
    )
    unit = bind(make_llama(intermediate_size=WIDTH)).blocks[0]
    return scorer.begin(Setting()).watch(unit)


def watched(groups, samples_per_group=2, **parameters) -> NetworkWatch:
    watch = watching(groups, samples_per_group, **parameters)
    for _ in range(len(groups) * samples_per_group):
        watch.add(sample_of(torch.randn(7, 2 * WIDTH)))
    return watch


def test_the_papers_rule_keeps_the_same_neurons_as_sorting_the_scores():
    """Threshold every map, OR over components, channels and groups; at any threshold."""
    groups = maps_of_groups(5)
    score = watched(groups, aggregate="max").score
    for t in (1.0, 3.6, 4.2, 5.0, 5.98):
        mask = torch.zeros(WIDTH, dtype=torch.bool)
        for maps in groups:
            for component in maps[0]:
                above = component.abs() > t
                mask |= above[:WIDTH] | above[WIDTH:]
        assert torch.equal(mask.nonzero().flatten(), select(score, int(mask.sum())))


def test_mean_aggregate_and_runs():
    groups = maps_of_groups(3, n_runs=4)
    expected = torch.stack([
        torch.stack([m.abs().amax(0).reshape(2, WIDTH).amax(0) for m in maps]).mean(0)
        for maps in groups
    ]).mean(0)  # fmt: skip
    score = watched(groups, aggregate="mean").score
    assert torch.allclose(score, expected.double(), atol=1e-6)
    assert torch.equal(map_scores(groups[0][:1], 2), map_scores(-groups[0][:1], 2))


def test_groups_are_exact_and_the_rest_is_counted():
    watch = watching([torch.ones(1, K, 2 * WIDTH)] * 2, samples_per_group=3, aggregate="max")
    samples = [torch.randn(4 + i, 2 * WIDTH) for i in range(8)]
    for sample in samples:
        watch.add(sample_of(sample))
    seen = watch._scorer.decomposer._seen
    assert [len(X) for X in seen] == [4 + 5 + 6, 7 + 8 + 9]
    assert torch.equal(seen[1], torch.cat(samples[3:6]))
    assert watch.leftover_samples == 2 and watch.n_groups == 2
    assert [report.n_tokens for report in watch.reports] == [15, 24]
    watch.rest()  # what waits for other layers holds no signals
    assert watch.leftover_samples == 2 and watch._stream.n_tokens == 0


def test_no_group_no_score():
    with pytest.raises(CalibrationError, match="no full group"):
        _ = watching([], samples_per_group=3).score
    with pytest.raises(RecipeError, match=r"aggregate='median': .*'max' or 'mean'"):
        SCORERS.make({"name": "networks", "aggregate": "median"})
