"""Each scorer against its paper's formula, computed another way."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind, hookimpl, manager
from funcnet_plugin.errors import CalibrationError, RecipeError
from funcnet_plugin.measure.gradients import gradients_for, loss_gradients
from funcnet_plugin.repair.compensation import Moments
from funcnet_plugin.score import neurons as scorers
from funcnet_plugin.score.neurons import SCORERS, LayerEvidence, Scorer, get_scorers
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import kept_of, loader, logits, offload_layers, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


@pytest.fixture(scope="module")
def measured(texts):
    """A layer, its inner activations (tokens, width) as numpy, and the evidence from them."""
    model = make_llama()
    block = bind(model).blocks[1]
    seen = []
    hook = block.down.register_forward_pre_hook(lambda m, a: seen.append(a[0][0].detach()))
    for batch in loader(texts):
        model(**batch)
    hook.remove()
    moments = Moments(block.width)
    for h in seen:
        moments.add(h)
    gradients = loss_gradients(model, loader(texts), [block])
    evidence = LayerEvidence(block, moments, gradients[1], seed=3)
    return block, torch.cat(seen).double().numpy(), evidence


def padded(batches, left=False):
    """Seven tokens more that are none."""
    pad = torch.nn.functional.pad
    return [{k: pad(v, (7, 0) if left else (0, 7)) for k, v in batch.items()} for batch in batches]


def score(name, evidence) -> np.ndarray:
    return get_scorers()[name].score(evidence).numpy()


def test_effect_and_flap_are_wifv(measured):
    block, h, evidence = measured
    W = block.down.weight.detach().double().numpy()
    wifv = np.array([h[:, j].var() * (W[:, j] ** 2).sum() for j in range(block.width)])
    np.testing.assert_allclose(score("effect", evidence), wifv, rtol=1e-4)
    standard = (wifv - wifv.mean()) / wifv.std(ddof=1)
    np.testing.assert_allclose(score("flap", evidence), standard, rtol=1e-3, atol=1e-4)


def test_wanda_sp_is_the_mean_of_wandas_metric_over_the_outputs(measured):
    block, h, evidence = measured
    W = block.down.weight.detach().double().numpy()
    metric = np.abs(W) * np.linalg.norm(h, axis=0)[None, :]
    np.testing.assert_allclose(score("wanda_sp", evidence), metric.mean(0), rtol=1e-4)


def test_taylor_is_weight_times_gradient_summed_over_the_neuron(measured, texts):
    block, _, evidence = measured
    model = make_llama()
    same = bind(model).blocks[1]
    losses = [model(**b, labels=b["input_ids"]).loss for b in loader(texts)]
    torch.stack(losses).mean().backward()
    expected = torch.zeros(block.width, dtype=torch.float64)
    for module in same.inputs:
        expected += (module.weight * module.weight.grad).abs().double().sum(1).detach()
    expected += (same.down.weight * same.down.weight.grad).abs().double().sum(0).detach()
    np.testing.assert_allclose(score("taylor", evidence), expected.numpy(), rtol=1e-3)


def test_taylor_sees_the_change_of_the_loss_that_it_predicts(texts):
    """First order: scaling a neuron's column by 1 + e changes the loss by e * sum(w dL/dw)."""
    model = make_llama().double()
    down = bind(model).blocks[1].down
    batches = list(loader(texts, samples=4))

    gradient = loss_gradients(model, batches, [bind(model).blocks[1]])[1].weights[-1]
    weight = down.weight.detach().clone()
    predicted = (weight * gradient).sum(0)
    neuron, e = int(predicted.abs().argmax()), 0.05

    @torch.no_grad()
    def loss(factor):
        down.weight[:, neuron] = weight[:, neuron] * factor
        return sum(float(model(**b, labels=b["input_ids"]).loss) for b in batches) / 4

    slope = (loss(1 + e) - loss(1 - e)) / (2 * e)
    assert slope == pytest.approx(float(predicted[neuron]), rel=0.02)


def test_gradients_leave_the_model_as_it_was(texts):
    model = make_llama()
    model.lm_head.weight.requires_grad_(False)
    loss_gradients(model, loader(texts), list(bind(model).blocks))
    assert all(p.grad is None for p in model.parameters())
    assert not model.lm_head.weight.requires_grad and model.model.norm.weight.requires_grad


@pytest.mark.parametrize("at_once", [3, 64])
def test_obs_goes_by_the_exact_loss_of_the_best_repair(measured, monkeypatch, at_once):
    """By brute force for the first removals: the least loss with all others refitted."""
    monkeypatch.setattr(scorers, "_AT_ONCE", at_once)  # matrices are brought up to date in between
    block, h, evidence = measured
    ridge = 0.02
    S = h.T @ h / len(h)
    S += ridge * np.diag(S).mean() * np.eye(len(S))
    W = block.down.weight.detach().double().numpy()
    left = list(range(block.width))
    order = score("obs", evidence)
    for step in range(5):
        losses = {}
        for j in left:
            keep = [i for i in left if i != j]
            refit = W @ S[:, keep] @ np.linalg.inv(S[np.ix_(keep, keep)])
            change = W.copy()
            change[:, keep] -= refit
            losses[j] = np.trace(change @ S @ change.T)
        gone = min(losses, key=losses.get)
        assert order[gone] == step
        left.remove(gone)
    assert sorted(order.tolist()) == list(range(block.width))


def test_elimination_does_not_depend_on_when_matrices_are_brought_up_to_date(measured, monkeypatch):
    _, _, evidence = measured
    at_the_end = score("surgeon", evidence)
    monkeypatch.setattr(scorers, "_AT_ONCE", 1)
    np.testing.assert_allclose(score("surgeon", evidence), at_the_end, rtol=1e-8)


@pytest.mark.parametrize("name", [s.name for s in SCORERS])
@pytest.mark.parametrize("family", ["llama", "glm", "opt", "gpt2"])
def test_every_scorer_prunes_every_layout(texts, tmp_path, name, family):
    FAMILIES[family].build().save_pretrained(tmp_path / "dense")
    text = recipe("WidthPruningModifier", scorer=name, align=8, pruning_ratio=0.1)
    model = run(str(tmp_path / "dense"), texts, text, output_dir=str(tmp_path / "out"))
    assert torch.isfinite(logits(model)).all()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    assert again.config.functional_network["settings"]["scorer"] == name


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_union_keeps_what_either_needs(fresh, texts, tmp_path, allocation):
    """One needs the first neurons most, the other the last: those in the middle go."""

    class Plugin:
        @staticmethod
        @hookimpl
        def funcnet_scorers():
            late = Scorer("late", lambda e: torch.arange(e.block.width).double())
            early = Scorer("early", lambda e: -torch.arange(e.block.width).double())
            return [late, early]

    plugins = manager.get_manager()
    plugins.register(Plugin, name="ends")
    try:
        fields = {"scorer": "early", "union_with": "late", "allocation": allocation}
        model = run(fresh(), texts, recipe("WidthPruningModifier", **fields))
    finally:
        plugins.unregister(name="ends")
    for kept in kept_of(model, tmp_path):
        half = len(kept) // 2
        assert kept == [*range(half), *range(48 - half, 48)]


def test_a_scorer_is_not_united_with_itself(fresh, texts):
    with pytest.raises(RecipeError, match="union_with names the scorer itself"):
        run(fresh(), texts, recipe("WidthPruningModifier", scorer="obs", union_with="obs"))


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_networks_take_one_more_scorer_into_the_union(fresh, texts, strategy):
    """With numbers that need a fixed half of all neurons, these stay whatever the networks say."""

    class Plugin:
        @staticmethod
        @hookimpl
        def funcnet_scorers():
            return [Scorer("late", lambda e: torch.arange(e.block.width).double())]

    plugins = manager.get_manager()
    plugins.register(Plugin, name="late")
    try:
        source = fresh()
        rows = bind(source).blocks[2].up.weight.detach().clone()
        text = recipe(union_with="late", score="union", strategy=strategy, repair="none")
        block = bind(run(source, texts, text)).blocks[2]
        kept = [i for i, row in enumerate(rows) if (block.up.weight == row).all(1).any()]
        assert len(kept) == block.width and set(range(42, 48)) <= set(kept)
    finally:
        plugins.unregister(name="late")


def test_an_unknown_scorer_is_named_with_the_known_ones(fresh, texts):
    with pytest.raises(RecipeError, match="no scorer 'best'; choose one of effect, flap"):
        run(fresh(), texts, recipe("WidthPruningModifier", scorer="best"))


def test_a_plugin_brings_a_scorer(fresh, texts):
    class Plugin:
        @staticmethod
        @hookimpl
        def funcnet_scorers():
            return [Scorer("first", lambda e: -torch.arange(e.block.width).double())]

    plugins = manager.get_manager()
    plugins.register(Plugin, name="mine")
    try:
        source = fresh()
        rows = bind(source).blocks[0].up.weight.detach().clone()
        text = recipe("WidthPruningModifier", scorer="first", repair="none")
        model = run(source, texts, text)
        block = bind(model).blocks[0]
        assert torch.equal(block.up.weight, rows[: block.width])
        plugins.register(type("Again", (), dict(Plugin.__dict__)), name="again")
        with pytest.raises(RecipeError, match="a scorer called 'first', and there is one already"):
            get_scorers()
    finally:
        for name in ("mine", "again"):
            plugins.unregister(name=name)


@pytest.fixture(scope="module")
def by_token(texts):
    """The gradient of the summed loss by the output of the layer's MLP, (tokens, hidden), read off
    a copy of the forward pass: something added to the output."""
    model = make_llama()
    block = bind(model).blocks[1]
    rows = []
    for batch in loader(texts):
        added = torch.zeros(*batch["input_ids"].shape, 24, requires_grad=True)
        hook = block.mlp.register_forward_hook(lambda m, a, out, added=added: out + added)
        loss = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(
            loss, batch["input_ids"][:, 1:].flatten(), reduction="sum"
        )
        rows.append(torch.autograd.grad(loss, added)[0].flatten(0, 1).double())
        hook.remove()
    return torch.cat(rows).numpy()


def test_gradients_of_the_output_are_per_token_of_the_summed_loss(measured, by_token):
    _, _, evidence = measured
    expected = by_token.T @ by_token / len(by_token)
    found = evidence.gradients.output_second.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_gradients_of_outputs_alone_are_the_same_and_ignore_padding(texts):
    model = make_llama()
    blocks = bind(model).blocks
    both = loss_gradients(model, loader(texts, samples=4), blocks)
    alone = loss_gradients(model, padded(loader(texts, samples=4)), blocks, of_weights=False)
    for i in range(3):
        assert alone[i].weights is None
        torch.testing.assert_close(
            alone[i].output_second, both[i].output_second, rtol=1e-4, atol=1e-9
        )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("drawn_by", [None, 7])
def test_padding_on_the_left_changes_nothing(texts, attention, drawn_by):
    """A padded position would predict the first real token otherwise."""
    model = make_llama()
    model.set_attn_implementation(attention)
    blocks = bind(model).blocks
    plain = loss_gradients(model, loader(texts, samples=4), blocks, drawn_by=drawn_by)
    batches = padded(loader(texts, samples=4), left=True)
    same = loss_gradients(model, batches, blocks, drawn_by=drawn_by)
    for i in range(3):
        near = {"rtol": 1e-3, "atol": 1e-6 * float(plain[i].output_second.abs().max())}
        torch.testing.assert_close(same[i].output_second, plain[i].output_second, **near)
        for a, b in zip(same[i].weights, plain[i].weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_weights_that_are_loaded_anew_each_time_gather_no_gradients(texts, tmp_path):
    model = make_llama()
    offload_layers(model, "disk", offload_dir=str(tmp_path))
    with pytest.raises(CalibrationError, match="weights are offloaded; load it into memory"):
        loss_gradients(model, loader(texts, samples=4), bind(model).blocks)


def test_loss_effect_is_the_mean_square_of_activation_times_gradient_if_independent(
    measured, by_token
):
    """K-FAC's assumption: activations and gradients independent. So all pairs of tokens."""
    block, h, evidence = measured
    W = block.down.weight.detach().double().numpy()
    along = by_token @ W  # (tokens, width): the loss's slope along each neuron's column
    expected = [np.mean(np.outer(h[:, j], along[:, j]) ** 2) for j in range(block.width)]
    np.testing.assert_allclose(score("loss_effect", evidence), expected, rtol=1e-3)


def test_surgeon_costs_are_those_of_refitting_in_the_metric_of_the_loss(measured, by_token):
    """The first removals against brute force: every candidate, the others refitted each time."""
    block, h, evidence = measured
    W = block.down.weight.detach().double().numpy()
    S = h.T @ h / len(h)
    S = S + 0.02 * np.trace(S) / len(S) * np.eye(len(S))
    G = by_token.T @ by_token / len(by_token)

    def error(kept):
        left = W @ S[:, kept] @ np.linalg.inv(S[np.ix_(kept, kept)])
        difference = W.copy()
        difference[:, kept] -= left
        return np.trace(difference.T @ G @ difference @ S)

    found = score("surgeon", evidence)
    kept, before, highest = list(range(block.width)), 0.0, 0.0
    for _ in range(6):
        errors = {j: error([i for i in kept if i != j]) for j in kept}
        gone = min(errors, key=errors.get)
        highest = max(highest, errors[gone] - before)
        assert found[gone] == pytest.approx(highest, rel=1e-2)
        before = errors[gone]
        kept.remove(gone)
    assert min(found[kept]) >= highest * 0.99


@pytest.fixture(scope="module")
def true_fisher():
    """E[g g'] of one layer's output over all futures that the model may write after one token, each
    as likely as the model says: two more tokens of a vocabulary of six, enumerated."""
    model = make_llama(vocab_size=6)
    block = bind(model).blocks[1]
    total = torch.zeros(24, 24, dtype=torch.float64)
    ids = torch.tensor([[3, 5, 4]])
    for y in itertools.product(range(6), repeat=2):
        added = torch.zeros(1, 3, 24, requires_grad=True)
        hook = block.mlp.register_forward_hook(lambda m, a, out, added=added: out + added)
        logs = model(ids).logits[0, :-1].log_softmax(-1)[range(2), list(y)]
        g = torch.autograd.grad(-logs.sum(), added)[0][0].double()
        hook.remove()
        total += float(logs.detach().sum().exp()) * g.T @ g / 3
    return model, block, ids, total


def test_drawn_labels_give_the_true_fisher_in_the_mean(true_fisher):
    model, block, ids, expected = true_fisher
    batch = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    draws = [
        loss_gradients(model, batch, [block], of_weights=False, drawn_by=seed)[1].output_second
        for seed in range(400)
    ]
    found, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 20
    assert ((found - expected).abs() <= 4.5 * spread + 1e-9).all()
    # the text's own labels are another matrix
    text = loss_gradients(model, batch, [block], of_weights=False)[1].output_second
    assert ((text - expected).abs() > 4.5 * spread).any()


def test_drawn_labels_depend_on_the_sample_alone(texts):
    model = make_llama()
    blocks = bind(model).blocks
    options = {"of_weights": False, "drawn_by": 7}
    one = loss_gradients(model, loader(texts, samples=4), blocks, **options)
    batches = padded(reversed(list(loader(texts, samples=4, batch_size=2))))
    same = loss_gradients(model, batches, blocks, **options)
    other = loss_gradients(model, loader(texts, samples=4), blocks, of_weights=False, drawn_by=8)
    for i in range(3):
        near = {"rtol": 1e-3, "atol": 1e-8}
        torch.testing.assert_close(same[i].output_second, one[i].output_second, **near)
        assert not torch.allclose(other[i].output_second, one[i].output_second, **near)


def test_weights_keep_the_gradients_of_the_text_beside_a_true_fisher(texts):
    model = make_llama()
    blocks = bind(model).blocks
    wanted = [get_scorers()[name] for name in ("taylor", "surgeon")]

    def found(drawn_by):
        return gradients_for(wanted, model, loader(texts), blocks, drawn_by=drawn_by)

    text, drawn = found(None), found(0)
    for i in range(3):
        for a, b in zip(text[i].weights, drawn[i].weights, strict=True):
            torch.testing.assert_close(a, b)
        assert not torch.allclose(text[i].output_second, drawn[i].output_second)


def test_a_true_fisher_that_no_scorer_looks_at_is_refused(fresh, texts):
    text = recipe("WidthPruningModifier", scorer="effect", fisher_labels="model")
    with pytest.raises(
        RecipeError, match=r"fisher_labels: model is for .* of loss_effect, surgeon"
    ):
        run(fresh(), texts, text)
