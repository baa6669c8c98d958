"""Reconstruction of whole MLPs, by itself and in runs."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.repair import reconstruction
from funcnet_plugin.repair.fit import Examples, fit_weights
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, recipe, run
from tests.repair.data import BEHIND_A_NORM, FIELDS, RESIDUAL, padded_batches, seen_by

pytestmark = pytest.mark.usefixtures("forget_the_session")
N_TOKENS = 4000
SAMPLE = torch.arange(N_TOKENS) // 100


def fields(**parameters):
    return FIELDS | {"repair": {"name": "reconstruction"} | parameters}


def weights_of(block):
    return [weight.detach().clone() for weight in block.weights]


def tokens(seed, n=N_TOKENS, hidden=24):
    return torch.randn(n, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def block():
    return bind(make_llama()).blocks[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_mlp_with_its_own_weights_is_itself(family):
    model = FAMILIES[family].build()
    block, outputs = bind(model).blocks[1], []
    # a copy: Falcon adds to the output in place
    block.down.register_forward_hook(lambda m, a, o: outputs.append(o.clone()))
    inputs, _ = seen_by(model, padded_batches(), lambda b: b.inputs[0])
    real = torch.cat([batch["attention_mask"].flatten().bool() for batch in padded_batches()])
    expected = torch.cat([output.flatten(0, -2) for output in outputs])[real]
    found = block.compute(weights_of(block), inputs[block.index])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_all_projections_are_fitted(block):
    """To an MLP whose projections all differ, which no other down projection could imitate."""
    first, x = weights_of(block), tokens(0)
    teacher = [w + 0.3 * w.std() * tokens(n, *w.shape) for n, w in enumerate(first, 1)]
    target = block.compute(teacher, x)
    found = fit_weights(block, [Examples(x, target, SAMPLE, 1.0)], epochs=60, seed=0)
    assert found.error < 0.1 * found.error_before
    unseen = tokens(9)
    missing = [
        float((block.compute(w, unseen) - block.compute(teacher, unseen)).square().mean())
        for w in (found.weights, first)
    ]
    assert missing[0] < 0.1 * missing[1]
    assert all(torch.equal(*pair) for pair in zip(weights_of(block), first, strict=True))


def test_errors_are_shares_of_the_target_on_held_out_samples(block):
    first, x = weights_of(block), tokens(0)
    target = block.compute(first, x) + tokens(1)
    held_out = SAMPLE % 8 == 7
    found = fit_weights(block, [Examples(x, target, SAMPLE, 0.3)], epochs=1, seed=0)
    for weights, error in ((first, found.error_before), (found.weights, found.error)):
        missing = (block.compute(weights, x) - target)[held_out].square().mean()
        assert error == pytest.approx(float(missing / target[held_out].square().mean()), rel=1e-4)


def test_a_fit_that_does_not_hold_is_left_out(block):
    """Of noise: what is learnt on the fitted samples is wrong on the others."""
    first, x = weights_of(block), tokens(0, 160)
    target = block.compute(first, x) + tokens(1, 160)
    examples = [Examples(x, target, torch.arange(160) // 10, 1.0)]
    found = fit_weights(block, examples, epochs=100, seed=0)
    assert found.error == found.error_before
    assert all(torch.equal(*pair) for pair in zip(found.weights, first, strict=True))
    # with too few samples to hold any out nothing tells it from signal
    alone = fit_weights(block, [Examples(x, target, torch.zeros(160), 1.0)], epochs=100, seed=0)
    assert alone.error < 0.9 * alone.error_before


def test_where_nothing_is_missing_nothing_is_fitted(block):
    first, x = weights_of(block), tokens(0)
    target = block.compute(first, x)
    found = fit_weights(block, [Examples(x, target, SAMPLE, 1.0)], epochs=1, seed=0)
    assert found.error < 1e-5
    assert all(torch.equal(*pair) for pair in zip(found.weights, first, strict=True))


def test_text_counts_by_its_weight(block):
    first, x = weights_of(block), tokens(0)
    target = block.compute([1.2 * w for w in first], x)
    found = [
        fit_weights(
            block,
            [Examples(x, target, SAMPLE, 1.0), Examples(x, other, SAMPLE, weight)],
            epochs=5,
            seed=0,
        ).weights
        for other, weight in ((target, 0.0), (-target, 0.0), (-target, 0.5))
    ]
    assert all(torch.equal(*pair) for pair in zip(*found[:2], strict=True))
    assert not torch.equal(found[1][0], found[2][0])


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt", "falcon", "gemma2"])
def test_the_last_hidden_states_come_closer(family, texts, tmp_path):
    """Than with least squares alone, for every kind of MLP, on other text of the same kind."""
    FAMILIES[family].build().save_pretrained(tmp_path / "dense")
    last = bind(FAMILIES[family].build()).blocks[-1].index
    calibration, other = loader(texts[:10], samples=150), list(loader(texts[10:]))
    expected = seen_by(FAMILIES[family].build(), other, lambda b: b.down)[1][last]
    errors = []
    for repair in (RESIDUAL, "reconstruction"):
        text = recipe(**FIELDS | {"repair": repair}, pruning_ratio=0.1, align=8)
        model = run(str(tmp_path / "dense"), texts, text, dataset=calibration)
        found = seen_by(model, other, lambda b: b.down)[1][last]
        errors.append(float((found - expected).square().mean()))
    if family in BEHIND_A_NORM:
        assert errors[0] == errors[1]
    else:
        assert errors[1] < 0.97 * errors[0]


def test_what_it_gained_is_written_down(fresh, texts):
    text = recipe(**fields(epochs=3))
    model = run(fresh(), texts, text, dataset=loader(texts, samples=150))
    block = model.config.functional_network
    assert block["settings"]["repair"]["epochs"] == 3
    measured = block["measured"]
    pairs = list(zip(measured["error"], measured["error_before_reconstruction"], strict=True))
    assert len(pairs) == 3 and all(0 <= after <= before < 1 for after, before in pairs)
    assert all(after < before for after, before in pairs)


def test_a_seed_gives_the_same_weights(fresh, texts):
    first, second, other = (
        run(
            fresh(),
            texts,
            recipe(**fields(epochs=2), seed=seed),
            dataset=loader(texts, samples=150),
        ).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_of_long_text_some_tokens_are_drawn(fresh, texts, monkeypatch):
    counts = []

    def counted(block, examples, **options):
        counts.append(sum(len(example.x) for example in examples))
        return fit_weights(block, examples, **options)

    monkeypatch.setattr(reconstruction, "fit_weights", counted)
    run(fresh(), texts, recipe(**fields(epochs=1)))
    monkeypatch.setattr(reconstruction, "_MOST_TOKENS", 200)
    run(fresh(), texts, recipe(**fields(epochs=1)))
    assert counts[:3] == [800] * 3
    assert all(120 < count < 280 for count in counts[3:])
