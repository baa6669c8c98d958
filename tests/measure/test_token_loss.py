"""The loss of next tokens, beside what autograd makes of torch's own."""

import pytest
import torch

from funcnet_plugin.measure import token_loss as module
from funcnet_plugin.measure.passes import NO_TARGET
from funcnet_plugin.measure.token_loss import drawn_tokens, text_tokens, token_loss

IN_PARTS = pytest.mark.parametrize("tokens", [20, 3, 1])


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(13, 400, generator=generator)
    targets = torch.randint(400, (13,), generator=generator)
    targets[[3, 12]] = NO_TARGET
    return logits, targets


def by_autograd(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def value_and_gradient(compute, logits, targets):
    leaf = logits.clone().requires_grad_()
    value = compute(leaf, targets)
    value.backward()
    return value.detach(), leaf.grad


@IN_PARTS
def test_value_and_gradient_are_those_of_autograd(case, tokens, monkeypatch):
    monkeypatch.setattr(module, "tokens_at_once", lambda logits: tokens)
    logits, targets = case
    value, gradient = value_and_gradient(token_loss, logits, targets)
    expected, slope = value_and_gradient(by_autograd, logits, targets)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    assert not gradient[[3, 12]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_gradient_once(case, dtype):
    logits, targets = case
    given = logits.to(dtype)
    _, gradient = value_and_gradient(token_loss, given, targets)
    _, exact = value_and_gradient(by_autograd, given.double(), targets)
    torch.testing.assert_close(gradient, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_no_gradient_is_made_where_none_is_asked_for(case):
    logits, targets = case
    with torch.no_grad():
        value = token_loss(logits, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, by_autograd(logits, targets))


def test_a_second_backward_pass_is_no_silent_mistake(case):
    logits, targets = case
    leaf = logits.clone().requires_grad_()
    value = token_loss(leaf, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_as_many_targets_as_tokens_are_asked_for(case):
    logits, targets = case
    with pytest.raises(ValueError, match="13 tokens have logits, and 11 have targets"):
        token_loss(logits, targets[:-2])


def test_tokens_of_the_text_are_those_that_come_next():
    labels = torch.tensor([[5, 6, 7], [NO_TARGET, 8, 9]])
    assert text_tokens(labels).tolist() == [[6, 7, NO_TARGET], [8, 9, NO_TARGET]]


@IN_PARTS
@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_drawn_tokens_are_the_same_in_parts(tokens, left, monkeypatch):
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, : 3 if left else None][-3:] = 0
    logits = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(2))
    at_once = drawn_tokens(logits, ids, mask, seed=0)
    monkeypatch.setattr(module, "tokens_at_once", lambda logits: tokens)

    found = drawn_tokens(logits, ids, mask, seed=0)

    assert torch.equal(found, at_once)
    labels = ids.masked_fill(mask == 0, NO_TARGET)
    labels[:, 1:].masked_fill_(mask[:, :-1] == 0, NO_TARGET)  # as `model_inputs` makes them
    assert torch.equal(found == NO_TARGET, text_tokens(labels) == NO_TARGET)
    assert not torch.equal(found, drawn_tokens(logits, ids, mask, seed=1))


def test_a_token_that_is_sure_to_come_is_drawn():
    ids, mask = torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.int64)
    logits = torch.full((1, 6, 40), -torch.inf)
    logits[..., 17] = 0.0
    assert drawn_tokens(logits, ids, mask, seed=0)[0, :-1].tolist() == [17] * 5
