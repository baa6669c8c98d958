"""Gradients of the loss by weights and outputs: whose labels, which tokens, what is left behind."""

import itertools

import numpy as np
import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure import gradients
from funcnet_plugin.measure.gradients import output_gradients, weight_gradients
from funcnet_plugin.measure.text import Text
from funcnet_plugin.measure.token_loss import text_tokens
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.run import Request
from funcnet_plugin.run.ahead import measure_ahead
from funcnet_plugin.run.clock import Clock
from funcnet_plugin.score.parts import SCORERS
from tests.conftest import make_llama
from tests.hosting import loader, offload_layers
from tests.slopes import drawn_labels, output_slopes


def padded(batches, left=False) -> Text:
    """Seven tokens more that are none."""
    pad = torch.nn.functional.pad
    return Text.read(
        {k: pad(v, (7, 0) if left else (0, 7)) for k, v in batch.items()} for batch in batches
    )


def test_gradients_leave_the_model_as_it_was(texts):
    model, text = make_llama(), Text.read(loader(texts))
    model.lm_head.weight.requires_grad_(False)
    units = bind(model).blocks
    weight_gradients(model, text, units)
    output_gradients(model, text, units, seed=0)
    assert all(p.grad is None for p in model.parameters())
    assert not model.lm_head.weight.requires_grad and model.model.norm.weight.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_the_output_are_per_token_of_the_summed_loss(texts, monkeypatch):
    model, text = make_llama(), Text.read(loader(texts))
    block = bind(model).blocks[1]
    labels = drawn_labels(monkeypatch)
    found = output_gradients(model, text, [block], seed=0)[1].numpy()
    slopes = output_slopes(model, block, [b["input_ids"] for b in text.batches], labels)
    expected = slopes.T @ slopes / len(slopes)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_gradients_of_weights_are_those_of_the_mean_loss_over_all_tokens(texts):
    model = make_llama()
    text = Text.read(loader(texts, samples=5, batch_size=2))  # the last batch is a single sample
    unit = bind(model).blocks[1]
    total, n_targets = 0.0, 0
    for batch in text.batches:
        ids, count = batch["input_ids"], batch["input_ids"][:, 1:].numel()
        total, n_targets = total + count * model(input_ids=ids, labels=ids).loss, n_targets + count
    expected = torch.autograd.grad(total / n_targets, [m.weight for m in unit.projections])

    found = weight_gradients(model, text, [unit])[1]

    assert len({len(batch["input_ids"]) for batch in text.batches}) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def far(found, expected):
    """By how much two tensors differ, as a share of the second."""
    return float((found - expected).norm() / expected.norm())


def test_float16_has_digits_left_for_a_batch_of_many_tokens(texts, monkeypatch):
    """Gradients of a mean over 2400 would be below what float16 can tell apart."""
    text = Text.read(loader(texts, samples=60, batch_size=60))
    # drawn ones would differ where rounding decides
    monkeypatch.setattr(gradients, "drawn_tokens", lambda logits, ids, *others: text_tokens(ids))
    models = make_llama(), make_llama().half()
    models[1].lm_head.weight.data.mul_(0.01)  # as small as those of larger models
    models[0].load_state_dict(models[1].state_dict())
    exact, found = (weight_gradients(model, text, bind(model).blocks) for model in models)
    assert max(far(a, b) for i in range(3) for a, b in zip(found[i], exact[i], strict=True)) < 0.01
    exact, found = (output_gradients(model, text, bind(model).blocks, seed=0) for model in models)
    assert max(far(found[i], exact[i]) for i in range(3)) < 0.01


def test_many_batches_add_up_in_half_precision():
    """A sum in bfloat16 would stand still after 256 equal ones."""
    model = make_llama().bfloat16()
    units = bind(model).blocks[:1]
    sample = {"input_ids": torch.tensor([[3, 7, 5, 11]])}
    once, often = (weight_gradients(model, Text.read([sample] * n), units)[0] for n in (1, 400))
    for one, other in zip(often, once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_model_that_does_not_predict_behind_every_token_is_refused(texts, monkeypatch):
    model = make_llama()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: forward(**given, logits_to_keep=3))
    with pytest.raises(CalibrationError, match=r"LlamaForCausalLM gives logits of \(1, 3\)"):
        output_gradients(model, Text.read(loader(texts)), bind(model).blocks, seed=0)


def test_gradients_ignore_padding(texts):
    model = make_llama()
    units = bind(model).blocks
    plain, more = Text.read(loader(texts, samples=4)), padded(loader(texts, samples=4))
    expected = output_gradients(model, plain, units, seed=7)
    found = output_gradients(model, more, units, seed=7)
    of_weights = weight_gradients(model, plain, units)
    same = weight_gradients(model, more, units)
    for i in range(3):
        torch.testing.assert_close(found[i], expected[i], rtol=1e-4, atol=1e-9)
        for a, b in zip(same[i], of_weights[i], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_left_changes_nothing(texts, attention):
    """A padded position would predict the first real token otherwise."""
    model = make_llama()
    model.set_attn_implementation(attention)
    units = bind(model).blocks
    plain = Text.read(loader(texts, samples=4))
    more = padded(loader(texts, samples=4), left=True)
    expected = output_gradients(model, plain, units, seed=7)
    found = output_gradients(model, more, units, seed=7)
    of_weights = weight_gradients(model, plain, units)
    same = weight_gradients(model, more, units)
    for i in range(3):
        near = {"rtol": 1e-3, "atol": 1e-6 * float(expected[i].abs().max())}
        torch.testing.assert_close(found[i], expected[i], **near)
        for a, b in zip(same[i], of_weights[i], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_weights_have_gradients_where_each_pass_fetches_them_anew(texts, tmp_path):
    model, text = make_llama(), Text.read(loader(texts, samples=4))
    expected = weight_gradients(model, text, bind(model).blocks)
    offload_layers(model, "disk", offload_dir=str(tmp_path))
    found = weight_gradients(model, text, bind(model).blocks)
    for i in range(3):
        assert all(map(torch.equal, found[i], expected[i]))


def test_outputs_have_gradients_where_weights_are_offloaded(texts, tmp_path):
    model, text = make_llama(), Text.read(loader(texts, samples=4))
    expected = output_gradients(model, text, bind(model).blocks, seed=0)
    offload_layers(model, "disk", offload_dir=str(tmp_path))
    found = output_gradients(model, text, bind(model).blocks, seed=0)
    for i in range(3):
        assert torch.equal(found[i], expected[i])


@pytest.fixture(scope="module")
def true_fisher():
    """E[g g'] of one layer's output over all futures that the model may write after one token, each
    as likely as the model says: two more tokens of a vocabulary of six, enumerated."""
    model = make_llama(vocab_size=6)
    block = bind(model).blocks[1]
    total = torch.zeros(24, 24, dtype=torch.float64)
    ids = torch.tensor([[3, 5, 4]])
    for y in itertools.product(range(6), repeat=2):
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)[range(2), list(y)]
        g = torch.from_numpy(output_slopes(model, block, [ids], [torch.tensor([y])]))
        total += float(logs.sum().exp()) * g.T @ g / 3
    return model, block, ids, total


def test_drawn_labels_give_the_true_fisher_in_the_mean(true_fisher):
    model, block, ids, expected = true_fisher
    text = Text.of_windows(ids)
    draws = [output_gradients(model, text, [block], seed=seed)[1] for seed in range(400)]
    found, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 20
    assert ((found - expected).abs() <= 4.5 * spread + 1e-9).all()
    # the text's own labels are another matrix
    slopes = torch.from_numpy(output_slopes(model, block, [ids], [ids[:, 1:]]))
    assert ((slopes.T @ slopes / 3 - expected).abs() > 4.5 * spread).any()


def test_drawn_labels_depend_on_the_sample_alone(texts):
    model = make_llama()
    units = bind(model).blocks
    one = output_gradients(model, Text.read(loader(texts, samples=4)), units, seed=7)
    batches = padded(reversed(list(loader(texts, samples=4, batch_size=2))))
    same = output_gradients(model, batches, units, seed=7)
    other = output_gradients(model, Text.read(loader(texts, samples=4)), units, seed=8)
    for i in range(3):
        near = {"rtol": 1e-3, "atol": 1e-8}
        torch.testing.assert_close(same[i], one[i], **near)
        assert not torch.allclose(other[i], one[i], **near)


def test_weights_keep_the_gradients_of_the_text_beside_a_true_fisher(texts):
    model, text = make_llama(), Text.read(loader(texts))
    units = bind(model).blocks

    def found(seed):
        request = Request(
            pruning_ratio=0.2,
            scorers=(SCORERS.make("taylor"), SCORERS.make("surgeon")),
            repair=REPAIRS.make("none"),
            seed=seed,
        )
        ahead = measure_ahead(request, model, units, units, text, None, None, None, Clock())
        return ahead.gradients

    one, other, alone = found(0), found(1), weight_gradients(model, text, units)
    for i in range(3):
        for gradients_of in (one["weight_gradients"], other["weight_gradients"]):
            for a, b in zip(gradients_of[i], alone[i], strict=True):
                torch.testing.assert_close(a, b)
        assert not torch.allclose(one["output_gradients"][i], other["output_gradients"][i])
