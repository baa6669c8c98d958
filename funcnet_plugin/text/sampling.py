"""Draws the tokens of a window with random numbers that belong to that window alone.

A generator that all windows share gives each what the others leave, so the text would depend on how
many are written at once. Here every token of every window has one uniform number of its own, and
the token is where the cumulated probabilities pass it (sampling by the inverse of the distribution
function). What is left is rounding: a model may predict a little differently in larger batches, and
a number that falls just there gives another token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from funcnet_plugin.measure.finite import not_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# At 1 the tail of every distribution gets in, mistake upon mistake, which no other text is like.
TEMPERATURE = 0.8


def uniforms(seed: int, windows: Sequence[int], length: int) -> Tensor:
    """Give the random numbers of some windows.

    Args:
        seed: of the text.
        windows: which, by their number in the whole text.
        length: tokens per window; the numbers of a shorter one are the first of a longer one's.

    Returns:
        (n_windows, length), float32, in [0, 1), on the CPU.
    """
    drawn = [np.random.default_rng((seed, i)).random(length, dtype=np.float32) for i in windows]
    return torch.from_numpy(np.stack(drawn))


class Drawing:
    """Leaves of the predictions nothing but the token that is drawn: `generate` takes the largest.

    Args:
        network: that predicts; asked again where its predictions are not finite.
        left_out: (n,), int64, the tokens that are never drawn.
        numbers: see `uniforms`; a row for each window of the batch.
    """

    def __init__(self, network: PreTrainedModel, left_out: Tensor, numbers: Tensor) -> None:
        self._network, self._left_out = network, left_out.to(network.device)
        self._numbers = numbers.to(network.device)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the next token of each window.

        Args:
            ids: (n_windows, length), int64, what is written so far.
            scores: (n_windows, vocabulary), float32; a copy made for this call, so it is changed.

        Returns:
            scores: minus infinity but for one token of each window.

        Raises:
            NumbersError: a prediction is not finite.
        """
        scores.div_(TEMPERATURE).index_fill_(1, self._left_out, -torch.inf)
        cumulated = scores.softmax(-1).cumsum_(-1)
        total = cumulated[:, -1:]
        if not bool(torch.isfinite(total).all()):  # as soon as one logit is not
            raise not_finite(self._network, ids, torch.ones_like(ids), "text of the model's own")
        # Below the total, also rounded, for the numbers are at most 1 - 2^-24. What is passed by
        # more than it has a probability, so no token that is left out is found.
        drawn = torch.searchsorted(
            cumulated, self._numbers[:, ids.shape[1], None] * total, right=True
        )
        return scores.fill_(-torch.inf).scatter_(1, drawn, 0.0)
