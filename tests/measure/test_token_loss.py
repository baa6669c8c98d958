"""The loss of next tokens, beside what autograd makes of torch's own."""

import pytest
import torch

from funcnet_plugin.measure import token_loss as module
from funcnet_plugin.measure.token_loss import NO_TARGET, drawn_tokens, text_tokens, token_loss

IN_PARTS = pytest.mark.parametrize("numbers", [2**22, 3 * 40, 1], ids=["once", "parts", "ones"])


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(13, 40, generator=generator)
    targets = torch.randint(40, (13,), generator=generator)
    targets[[3, 12]] = NO_TARGET
    return logits, targets


def by_autograd(logits, targets):
    return torch.nn.functional.cross_entropy(logits.float(), targets)


@IN_PARTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_autograd(case, numbers, dtype, monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", numbers)
    logits, targets = case
    found = []
    for compute in (token_loss, by_autograd):
        leaf = logits.to(dtype).requires_grad_()
        value = compute(leaf, targets)
        (2.0 * value).backward()
        found.append((value.detach(), leaf.grad))

    torch.testing.assert_close(*(value for value, _ in found))
    torch.testing.assert_close(*(gradient for _, gradient in found))
    assert not found[0][1][[3, 12]].any()


def test_tokens_of_the_text_are_those_that_come_next():
    labels = torch.tensor([[5, 6, 7], [NO_TARGET, 8, 9]])
    assert text_tokens(labels).tolist() == [[6, 7, NO_TARGET], [8, 9, NO_TARGET]]


@IN_PARTS
def test_drawn_tokens_are_the_same_in_parts(numbers, monkeypatch):
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    logits = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(2))
    at_once = drawn_tokens(logits, ids, mask, seed=0)
    monkeypatch.setattr(module, "_NUMBERS", numbers)

    found = drawn_tokens(logits, ids, mask, seed=0)

    assert torch.equal(found, at_once)
    assert (found[0, :-1] >= 0).all() and found[0, -1] == NO_TARGET
    assert (found[1, :5] >= 0).all() and (found[1, 5:] == NO_TARGET).all()
    assert not torch.equal(found, drawn_tokens(logits, ids, mask, seed=1))


def test_a_token_that_is_sure_to_come_is_drawn():
    ids, mask = torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.int64)
    logits = torch.full((1, 6, 40), -torch.inf)
    logits[..., 17] = 0.0
    assert drawn_tokens(logits, ids, mask, seed=0)[0, :-1].tolist() == [17] * 5
