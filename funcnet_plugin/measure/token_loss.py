"""Draws next tokens from a model's predictions, and computes their loss with its gradient.

Tensors of tokens by vocabulary are the largest of a backward pass, and autograd would keep three of
them in float32. The gradient is the predicted distribution less the token that came, so it is
all there is to keep, and a few tokens at a time need float32.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

NO_TARGET = -100
_NUMBERS = 2**22  # in float32 at a time: 16 MB


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.zeros_like(logits)
        total = torch.zeros((), device=logits.device)
        where = (targets != NO_TARGET).nonzero().flatten()
        for some in where.split(_rows(logits)):
            log_chances = logits[some].float().log_softmax(1)
            target = targets[some, None]
            total -= log_chances.gather(1, target).sum()
            less = log_chances.exp_().scatter_add_(1, target, -torch.ones_like(log_chances[:, :1]))
            gradient[some] = less.div_(len(where)).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total / len(where)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood of tokens, in nats.

    Args:
        logits: (tokens, vocabulary); they get a gradient.
        targets: which token came, (tokens,), int64; NO_TARGET where none is asked for. At least
            one is.

    Returns:
        a number, float32.
    """
    return _TokenLoss.apply(logits, targets)


def text_tokens(labels: Tensor) -> Tensor:
    """List the tokens that the text has next, (batch, length) int64, the last of each without."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=NO_TARGET)


@torch.no_grad()
def drawn_tokens(logits: Tensor, ids: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draw next tokens as a model writes them, where the text has one.

    Args:
        logits: (batch, length, vocabulary).
        ids, mask: of the text, (batch, length).
        seed: what is drawn for a sample depends on it and on the sample alone.

    Returns:
        (batch, length), int64; NO_TARGET at padding and at the last token of each sample.
    """
    targets = torch.full_like(ids, NO_TARGET)
    for row, (sample, real) in enumerate(zip(ids.cpu(), mask.cpu().bool(), strict=True)):
        text = sample[real].numpy().tobytes()
        digest = hashlib.sha256(text + str(seed).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        where = (real[1:] & real[:-1]).nonzero().flatten()
        levels = torch.rand(len(where), 1, generator=generator)
        rows = _rows(logits[row])
        for some, level in zip(where.split(rows), levels.split(rows), strict=True):
            chances = logits[row, some.to(logits.device)].float().softmax(-1).cumsum(-1)
            found = torch.searchsorted(chances, level.to(chances) * chances[:, -1:]).flatten()
            # rounding can leave the last sum below the level
            targets[row, some.to(targets.device)] = found.clamp_max(chances.shape[-1] - 1)
    return targets


def _rows(logits: Tensor) -> int:
    """Say how many tokens of (tokens, vocabulary) are taken at a time."""
    return max(1, _NUMBERS // logits.shape[1])
