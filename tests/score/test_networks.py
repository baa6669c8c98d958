import pytest
import torch

from funcnet_plugin.cut.budget import select
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor.functional_network import FunctionalNetworkModifier
from funcnet_plugin.ica import Decomposition, RunReport
from funcnet_plugin.score.local_networks import NetworkScorer, map_scores
from funcnet_plugin.score.neurons import union_of_ranks
from tests.hosting import recipe, run

WIDTH, K = 50, 6


def maps_of_groups(n_groups: int, n_runs: int = 1):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n_runs, K, 2 * WIDTH, generator=generator) * 2 for _ in range(n_groups)]


def run_scorer(groups, aggregate="max", samples_per_group=2, stability=None, **options):
    waiting = iter(groups)

    def decompose(X):
        maps = next(waiting)
        return Decomposition(
            maps,
            (RunReport(True, 1, 0.0),),
            0.5,
            torch.ones(len(maps), K) if stability is None else stability,
        )

    scorer = NetworkScorer(WIDTH, 2, samples_per_group, aggregate, decompose, n_rows=K, **options)
    for _ in range(len(groups) * samples_per_group):
        scorer.add(torch.randn(7, 2 * WIDTH))
    return scorer


def test_the_papers_rule_keeps_the_same_neurons_as_sorting_the_scores():
    """Threshold every map, OR over components, channels and groups; at any threshold."""
    groups = maps_of_groups(5)
    score = run_scorer(groups).score
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
    assert torch.allclose(run_scorer(groups, "mean").score, expected.double(), atol=1e-6)
    assert torch.equal(map_scores(groups[0][:1], 2), map_scores(-groups[0][:1], 2))


def test_groups_are_exact_and_the_rest_is_counted():
    seen = []

    def decompose(X):
        seen.append(torch.cat(X.blocks))
        maps = torch.ones(1, K, 2 * WIDTH)
        return Decomposition(maps, (RunReport(True, 1, 0.0),), 0.5, torch.ones(1, K))

    scorer = NetworkScorer(WIDTH, 2, 3, "max", decompose, n_rows=K)
    samples = [torch.randn(4 + i, 2 * WIDTH) for i in range(8)]
    for sample in samples:
        scorer.add(sample)
    assert [len(X) for X in seen] == [4 + 5 + 6, 7 + 8 + 9]
    assert torch.equal(seen[1], torch.cat(samples[3:6]))
    assert scorer.leftover_samples == 2
    assert [report.n_tokens for report in scorer.reports] == [15, 24]
    scorer.drop_unfinished()  # what waits for other layers holds no signals
    assert scorer.leftover_samples == 2 and scorer._stream.n_tokens == 0


def test_no_group_no_score():
    scorer = NetworkScorer(WIDTH, 2, 3, "max", lambda X: None, n_rows=K)
    with pytest.raises(ValueError, match="no full group"):
        _ = scorer.score
    with pytest.raises(ValueError, match="aggregate"):
        NetworkScorer(WIDTH, 2, 3, "median", lambda X: None, n_rows=K)


def test_networks_that_are_not_found_again_do_not_count():
    (maps,) = maps_of_groups(1, n_runs=2)
    stability = torch.full((2, K), 0.9)
    stability[:, 2] = 0.3
    score = run_scorer([maps], stability=stability, min_stability=0.5).score
    without = maps[:, [i for i in range(K) if i != 2]]
    assert torch.equal(score, map_scores(without, 2))


def test_networks_may_decide_on_a_share_alone():
    """The best third by networks stays, the rest goes by the other score; ranks over all layers."""
    modifier = FunctionalNetworkModifier(
        pruning_ratio=0.2, networks_share=1 / 3, union_with="loss_effect"
    )
    layers = [
        {"networks": torch.tensor([9.0, 1.0, 2.0]), "loss_effect": torch.tensor([0.0, 5.0, 4.0])},
        {"networks": torch.tensor([3.0, 8.0, 0.5]), "loss_effect": torch.tensor([3.0, 1.0, 6.0])},
    ]
    combined = torch.cat(modifier._combine(layers))
    # networks: neurons 0 and 4; then by loss_effect 5, 1, 2, 3
    assert combined.argsort(descending=True).tolist() == [0, 4, 5, 1, 2, 3]
    assert torch.equal(
        torch.cat(FunctionalNetworkModifier(pruning_ratio=0.2)._combine(layers)),
        torch.cat(union_of_ranks([[s[n] for s in layers] for n in ("networks", "loss_effect")])),
    )


def test_a_share_for_networks_needs_another_scorer(fresh, texts, forget_the_session):
    with pytest.raises(RecipeError, match="add union_with: loss_effect"):
        run(fresh(), texts, recipe(networks_share=0.5))
