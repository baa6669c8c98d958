"""The divergence of two predictions, beside what autograd makes of torch's own."""

import pytest
import torch

from funcnet_plugin.repair import kullback_leibler as module
from funcnet_plugin.repair.kullback_leibler import kullback_leibler


def by_autograd(pruned, dense, counts):
    p, q = (logits.float().log_softmax(1) for logits in (dense, pruned))
    divergence = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True)
    return (divergence.sum(1) * counts).sum()


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    pruned, dense = (4 * torch.randn(13, 40, generator=generator) for _ in range(2))
    counts = torch.rand(13, generator=generator)
    counts[3] = 0.0  # padding
    return pruned, dense, counts


@pytest.mark.parametrize("tokens", [20, 3, 1])
def test_value_and_gradient_are_those_of_autograd(case, tokens, monkeypatch):
    monkeypatch.setattr(module, "tokens_at_once", lambda logits: tokens)
    pruned, dense, counts = case
    found = []
    for compute in (kullback_leibler, by_autograd):
        leaf = pruned.clone().requires_grad_()
        value = compute(leaf, dense, counts)
        (2.5 * value).backward()
        found.append((value.detach(), leaf.grad))

    torch.testing.assert_close(*(value for value, _ in found))
    torch.testing.assert_close(*(gradient for _, gradient in found))


def test_equal_predictions_are_no_distance_apart(case):
    pruned, _, counts = case
    leaf = pruned.clone().requires_grad_()

    value = kullback_leibler(leaf, pruned + 7.0, counts)  # a constant changes no prediction

    assert float(value.detach()) == pytest.approx(0.0, abs=1e-5)
    assert float(torch.autograd.grad(value, leaf)[0].abs().max()) < 1e-6


def test_an_entry_that_both_rule_out_adds_nothing(case):
    pruned, dense, counts = case
    without = kullback_leibler(pruned, dense, counts)
    ruled_out = torch.full((13, 2), -torch.inf)
    leaf = torch.cat([pruned, ruled_out], 1).requires_grad_()

    value = kullback_leibler(leaf, torch.cat([dense, ruled_out], 1), counts)

    torch.testing.assert_close(value.detach(), without)
    gradient = torch.autograd.grad(value, leaf)[0]
    assert gradient.isfinite().all()
    assert not gradient[:, 40:].any()


def test_the_gradient_has_the_dtype_of_the_logits(case):
    pruned, dense, counts = case
    leaf = pruned.bfloat16().requires_grad_()

    gradient = torch.autograd.grad(kullback_leibler(leaf, dense.bfloat16(), counts), leaf)[0]

    assert gradient.dtype == torch.bfloat16
    exact = pruned.bfloat16().float().requires_grad_()
    expected = torch.autograd.grad(by_autograd(exact, dense.bfloat16(), counts), exact)[0]
    torch.testing.assert_close(gradient.float(), expected, atol=0.0, rtol=2**-7)


def test_nothing_is_kept_where_no_gradient_is_asked_for(case):
    value = kullback_leibler(*case)

    assert value.grad_fn is None
    torch.testing.assert_close(value, by_autograd(*case))
