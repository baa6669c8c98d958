"""Computes the divergence of two models' predictions, and its gradient in the same pass.

Of each token the gradient is the difference of the two distributions. So it is computed together
with the divergence, and no tensor of all tokens by the vocabulary is kept in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from funcnet_plugin.measure.logits import tokens_at_once


class _KullbackLeibler(torch.autograd.Function):
    """Computes the gradient in the forward pass already; the backward pass hands it on."""

    @staticmethod
    def forward(ctx: Any, pruned: Tensor, dense: Tensor, counts: Tensor) -> Tensor:
        gradient = torch.empty_like(pruned) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=pruned.device)
        rows = tokens_at_once(pruned)
        for start in range(0, len(pruned), rows):
            part = slice(start, start + rows)
            log_p, log_q = (_log_softmax(logits[part]) for logits in (dense, pruned))
            p, count = log_p.exp(), counts[part]
            total += log_p.sub_(log_q).mul_(p).sum(1) @ count
            if gradient is not None:
                gradient[part] = log_q.exp_().sub_(p).mul_(count[:, None])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream.to(gradient.dtype)), None, None


def kullback_leibler(pruned: Tensor, dense: Tensor, counts: Tensor) -> Tensor:
    """Sum the divergences of tokens, in nats, each by what it counts.

    Args:
        pruned: logits that are judged, (tokens, vocabulary); they get a gradient, `dense` none.
        dense: logits that are right, likewise.
        counts: of the tokens, (tokens,), float32.

    Returns:
        a number, float32.
    """
    return _KullbackLeibler.apply(pruned, dense, counts)


def _log_softmax(logits: Tensor) -> Tensor:
    """Compute logarithms of the chances, (tokens, vocabulary), float32.

    An entry of the vocabulary that a model rules out by -inf adds nothing to a divergence, where 0
    times the difference of two infinities would be NaN: hence the clamp.
    """
    found = logits.float().log_softmax(1)
    return found.clamp_min_(torch.finfo(torch.float32).min)
