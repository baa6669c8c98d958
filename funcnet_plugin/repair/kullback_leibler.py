"""Computes the divergence of two models' predictions, and its gradient in the same pass.

Tensors of tokens by vocabulary are the largest of a training step, and autograd would keep six of
them in float32. The gradient is the difference of the two distributions, so that it is all there is
to keep, and a few tokens at a time need float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_NUMBERS = 2**22  # in float32 at a time: 16 MB


class _KullbackLeibler(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pruned: Tensor, dense: Tensor, counts: Tensor) -> Tensor:
        gradient = torch.empty_like(pruned) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=pruned.device)
        rows = max(1, _NUMBERS // pruned.shape[1])
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
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None, None


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
