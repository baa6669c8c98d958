"""Draws next tokens from a model's predictions, and computes their loss with its gradient.

Of each token the gradient is the predicted distribution less the token that came. So it is computed
together with the loss, and no tensor of all tokens by the vocabulary is kept for it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from funcnet_plugin.measure.logits import tokens_at_once
from funcnet_plugin.measure.passes import NO_TARGET


class _TokenLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass already; the backward pass hands it on."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=logits.device)
        where = (targets != NO_TARGET).nonzero().flatten()
        for part in where.split(tokens_at_once(logits)):
            log_chances, came = logits[part].float().log_softmax(1), targets[part]
            row = torch.arange(len(part), device=logits.device)
            total -= log_chances[row, came].sum()
            if gradient is not None:
                slope = log_chances.exp_()
                slope[row, came] -= 1.0
                gradient[part] = slope.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream.to(gradient.dtype)), None


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the negative log-likelihoods of tokens, in nats.

    Args:
        logits: (tokens, vocabulary); they get a gradient.
        targets: which token came, (tokens,), int64, on the same device; NO_TARGET where none is
            asked for.

    Returns:
        a number, float32.

    Raises:
        ValueError: there are not as many targets as tokens.
    """
    if logits.shape[:1] != targets.shape:
        raise ValueError(f"{len(logits)} tokens have logits, and {len(targets)} have targets.")
    return _TokenLoss.apply(logits, targets)


def text_tokens(labels: Tensor) -> Tensor:
    """Say which token comes next in the text, (batch, length) int64; NO_TARGET behind the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=NO_TARGET)


@torch.no_grad()
def drawn_tokens(logits: Tensor, ids: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draw next tokens as a model writes them, wherever the text has one.

    Args:
        logits: (batch, length, vocabulary).
        ids, mask: of the text, (batch, length).
        seed: what is drawn for a sample depends on it and on the sample alone.

    Returns:
        (batch, length), int64, where the logits are; NO_TARGET at padding and behind the last token
        of each sample, as `text_tokens` has it.
    """
    targets = torch.full(ids.shape, NO_TARGET, device=logits.device)
    for row, (sample, real) in enumerate(zip(ids.cpu(), mask.cpu().bool(), strict=True)):
        text = sample[real].numpy().tobytes()
        digest = hashlib.sha256(text + str(seed).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        where = (real[1:] & real[:-1]).nonzero().flatten()
        levels = torch.rand(len(where), 1, generator=generator).to(logits.device)
        count = tokens_at_once(logits[row])
        parts = where.to(logits.device).split(count), levels.split(count)
        for part, level in zip(*parts, strict=True):
            chances = logits[row, part].float().softmax(-1).cumsum(-1)
            drawn = torch.searchsorted(chances, level * chances[:, -1:]).flatten()
            # rounding can leave the last sum below the level
            targets[row, part] = drawn.clamp_max(chances.shape[-1] - 1)
    return targets
