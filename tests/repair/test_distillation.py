"""Distillation: predictions of the dense model, and the whole pruned model tuned to them."""

import math

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import NumbersError, RecipeError
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.predictions import predictions_of
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair import tuning
from funcnet_plugin.repair.divergence import Divergence
from funcnet_plugin.repair.low_rank import LowRank, projections_of
from funcnet_plugin.repair.tuning import tune
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, logged, recipe, run
from tests.repair.data import padded_batches

pytestmark = pytest.mark.usefixtures("forget_the_session")
DISTILLATION = {"name": "distillation", "epochs": 2}


def predicted(model, batches=None, **text):
    text = Text(tuple(padded_batches() if batches is None else batches), **text)
    return predictions_of(model, bind(model).blocks, [text])


def pruned(model):
    """Every layer loses a third of its neurons, without repair."""
    for block in bind(model).blocks:
        cut(block, torch.arange(0, block.width, 3))
    return model


def windows(count, length=30):
    ids = torch.randint(3, 32, (count, length), generator=torch.Generator().manual_seed(4))
    return [{"input_ids": row[None]} for row in ids]


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0].float()


def divergence_of(dense, other, found):
    """By the definition, window by window: the mean over all tokens."""
    total = tokens = 0
    for window in found:
        p, q = (logits_of(model, window.ids).log_softmax(-1) for model in (dense, other))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(window.ids)
    return total / tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_divergence_is_that_of_the_logits(family):
    """Whatever an architecture does to its logits behind the head, and without padding."""
    dense, other = FAMILIES[family].build(), pruned(FAMILIES[family].build())
    found = predicted(dense)
    assert [len(window.ids) for window in found] == [12, 7, 12, 7]
    assert sum(len(w.ids) * w.weight for w in found) == pytest.approx(1.0)
    mean = Divergence(other, bind(other).blocks).mean(found)
    assert mean == pytest.approx(divergence_of(dense, other, found), rel=1e-3)
    assert Divergence(dense, bind(dense).blocks).mean(found) == pytest.approx(0, abs=1e-6)


def test_words_that_a_model_rules_out_add_nothing():
    """Models whose vocabulary was filled up give -inf there."""
    dense, other = make_llama(), pruned(make_llama())
    for model in (dense, other):
        model.lm_head.register_forward_hook(
            lambda head, args, logits: torch.cat(
                [logits[..., :28], torch.full_like(logits[..., 28:], -torch.inf)], -1
            )
        )
    found = predicted(dense, windows(2))
    divergence = Divergence(other, bind(other).blocks)
    expected = 0.0
    for window in found:
        p, q = (logits_of(m, window.ids)[:, :28].log_softmax(-1) for m in (dense, other))
        expected += float((p.exp() * (p - q)).sum(-1).mean()) / len(found)
    assert divergence.mean(found) == pytest.approx(expected, rel=1e-4)
    weight = other.model.layers[0].mlp.down_proj.weight.requires_grad_()
    divergence.of(found, torch.stack([w.ids for w in found]), torch.ones(2, 30)).backward()
    assert torch.isfinite(weight.grad).all() and weight.grad.any()


def test_padding_changes_nothing():
    dense, other = make_llama(), pruned(make_llama())
    text = [*windows(2), *windows(2, length=29)]
    alone, padded = (predicted(dense, text, may_pad=may_pad) for may_pad in (False, True))
    for one, two in zip(alone, padded, strict=True):
        torch.testing.assert_close(one.states, two.states, atol=1e-5, rtol=1e-5)
    divergence = Divergence(other, bind(other).blocks)
    assert len(divergence.batches(alone)) == 2 and len(divergence.batches(padded)) == 1
    assert divergence.mean(alone) == pytest.approx(divergence.mean(padded), rel=1e-4)


def test_a_text_counts_by_its_share():
    dense, other = make_llama(), pruned(make_llama())
    ids = torch.randint(3, 32, (8, 10), generator=torch.Generator().manual_seed(5))
    one, two = Text.of_windows(ids[:2], 0.8), Text.of_windows(ids[2:], 0.2)
    units = bind(dense).blocks
    both = predictions_of(dense, units, [one, two])
    divergence = Divergence(other, bind(other).blocks)
    first, second = (divergence.mean(predictions_of(dense, units, [text])) for text in (one, two))
    assert divergence.mean(both) == pytest.approx(0.8 * first + 0.2 * second, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_low_rank_change_is_nothing_at_first_and_can_be_folded(family):
    model = FAMILIES[family].build()
    ids = torch.arange(3, 20)
    expected = logits_of(model, ids)
    layer = bind(model).blocks[0].decoder_layer
    changes = [LowRank(m, 4, torch.Generator().manual_seed(0)) for m in projections_of(layer)]
    assert len(changes) >= 4  # attention's as well
    with hooked(change.watch() for change in changes):
        assert torch.equal(logits_of(model, ids), expected)
        for change in changes:
            change.up.data.normal_(std=0.01)
        changed = logits_of(model, ids)
    assert torch.equal(logits_of(model, ids), expected)
    assert not torch.allclose(changed, expected, atol=1e-2)
    for change in changes:
        change.module.weight.data = change.changed_weight()
    torch.testing.assert_close(logits_of(model, ids), changed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_comes_closer_on_text_that_it_did_not_learn_from(family):
    dense, model = FAMILIES[family].build(), pruned(FAMILIES[family].build())
    learned, other = (predicted(dense, windows(n)) for n in (64, 8))
    units = bind(model).blocks
    before = Divergence(model, units).mean(other)
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    tuned = tune(model, units, learned, epochs=3, seed=0)
    assert tuned.divergence < 0.97 * tuned.divergence_before
    assert Divergence(model, units).mean(other) < before
    assert not any(module._forward_hooks for module in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())


def test_what_it_says_is_measured_on_samples_that_were_held_out():
    dense, model = make_llama(), pruned(make_llama())
    found = predicted(dense, windows(64), per_sample=2)
    held_out = [w for i, w in enumerate(found) if i // 2 % 16 == 15]
    before = divergence_of(dense, model, held_out)
    tuned = tune(model, bind(model).blocks, found, epochs=1, seed=0)
    assert tuned.divergence_before == pytest.approx(before, rel=1e-4)
    assert tuned.divergence == pytest.approx(divergence_of(dense, model, held_out), rel=1e-3)


def test_where_nothing_is_missing_the_model_stays():
    model = make_llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = tune(model, bind(model).blocks, predicted(model, windows(32)), epochs=1, seed=0)
    assert tuned.divergence == tuned.divergence_before == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


class Twin:
    """Stands for the processes of a run of two that hold the same windows."""

    def gather(self, value):
        return [value, value]

    def total(self, count):
        return 2 * count

    def sum(self, tensor):
        return 2 * tensor


def test_no_step_is_empty_where_processes_have_fewer_windows_than_there_are_steps():
    """One epoch of 19 windows in each of two processes, which have 32 steps by their tokens."""
    model = pruned(make_llama())
    found = predicted(make_llama(), windows(20))
    tuned = tune(model, bind(model).blocks, found, epochs=3, seed=0, processes=Twin())
    assert tuned.divergence < 0.97 * tuned.divergence_before


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_pruned_model_that_predicts_nan_is_refused_by_layer():
    model = pruned(make_llama())
    found = predicted(make_llama(), windows(20))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(NumbersError, match=r"^layer 1: the output of model\.layers\.1\.mlp\.down"):
        tune(model, bind(model).blocks, found, epochs=1, seed=0)


def test_tuning_that_runs_away_leaves_the_model_and_says_so(monkeypatch):
    model = pruned(make_llama())
    before = {name: p.clone() for name, p in model.named_parameters()}
    monkeypatch.setattr(tuning, "_RATE_UP", math.inf)
    found = predicted(make_llama(), windows(20))
    with logged() as lines:
        tuned = tune(model, bind(model).blocks, found, epochs=1, seed=0)
    assert "the tuning ran away" in "".join(lines)
    assert tuned.divergence == tuned.divergence_before
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_batch_that_does_not_fit_comes_in_halves(monkeypatch):
    """And learns the same: nothing of the batch that failed is counted."""
    found = predicted(make_llama(), windows(32))
    weights, calls = [], []
    for limit in (None, 1):
        model = pruned(make_llama())
        units = bind(model).blocks
        of = Divergence.of

        def limited(self, windows, ids, mask, limit=limit, of=of):
            calls.append((limit, len(ids)))
            loss = of(self, windows, ids, mask)
            if limit is not None and len(ids) > limit:
                raise torch.OutOfMemoryError
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(Divergence, "of", limited)
            tune(model, units, found, epochs=1, seed=0)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert max(n for limit, n in calls if limit is None) == 2
    assert calls[-1] == (1, 1)
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_a_model_without_a_known_head_is_refused(monkeypatch):
    model = make_llama()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(RecipeError, match="does not say which module predicts tokens"):
        predicted(model)


def test_a_run_says_what_it_gained_and_has_a_seed(fresh, texts):
    first, second, other = (
        run(
            fresh(),
            texts,
            recipe(repair=DISTILLATION, seed=seed),
            dataset=loader(texts, samples=64),
        )
        for seed in (0, 0, 1)
    )
    measured = first.config.functional_network["measured"]
    assert 0 < measured["divergence"] < measured["divergence_before_distillation"]
    one, two, three = (model.state_dict() for model in (first, second, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_the_dense_model_is_what_it_is_tuned_to(fresh, texts):
    """Not the pruned one, nor a head or attention as llm-compressor has them meanwhile."""
    dense = fresh()
    other = predicted(dense, windows(8))
    found = [
        run(fresh(), texts, recipe(repair=repair), dataset=loader(texts, samples=64))
        for repair in ("least_squares", DISTILLATION)
    ]
    before, after = (divergence_of(dense, model, other) for model in found)
    assert after < before
    assert found[1].lm_head(torch.zeros(1, 24)).device.type == "cpu"
    assert found[1].config._attn_implementation == dense.config._attn_implementation
