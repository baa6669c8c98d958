"""Measures how far from Gaussian a source is: the contrasts that the solvers climb."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Contrast:
    """Holds a function G of a source y, and what the solvers ask of its derivatives.

    Attributes:
        g: the derivative of G, of Y (..., k, n), same shape.
        slope: mean of g'(y) over samples, (..., k), of Y and g(Y).
        G: of Y, same shape.
        gaussian: E G of a standard normal.
        from_product: of E g(y) y, (..., k), the mean slope and E G, both (..., k), of sources with
            unit variance; None where they do not follow from it.
    """

    g: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    G: Callable[[Tensor], Tensor]
    gaussian: float
    from_product: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


CONTRASTS = {
    "cube": Contrast(
        g=lambda Y: Y * (Y * Y),
        slope=lambda Y, _: 3.0 * (Y * Y).mean(-1),
        G=lambda Y: Y.square().square() / 4.0,
        gaussian=0.75,
        # g' = 3 y^2 and G = y g(y) / 4
        from_product=lambda product: (torch.full_like(product, 3.0), product / 4.0),
    ),
    "logcosh": Contrast(
        g=torch.tanh,
        slope=lambda _, gY: 1.0 - (gY * gY).mean(-1),
        G=lambda Y: torch.logaddexp(Y, -Y) - math.log(2.0),
        gaussian=0.3745672075,
    ),
    "exp": Contrast(
        g=lambda Y: Y * torch.exp(-0.5 * (Y * Y)),
        slope=lambda Y, _: ((1.0 - Y * Y) * torch.exp(-0.5 * (Y * Y))).mean(-1),
        G=lambda Y: -torch.exp(-0.5 * Y * Y),
        gaussian=-math.sqrt(0.5),
    ),
}


def negentropy(S: Tensor, contrast: str) -> Tensor:
    """Compute the contrast that FastICA climbs, to compare solutions.

    It is the mean over components of ``|E G(s) - E G(nu)|``, nu standard normal.

    Args:
        S: (..., k, n) unit-variance sources.
        contrast: a name in `CONTRASTS`.

    Returns:
        (...), larger is further from Gaussian.
    """
    of = CONTRASTS[contrast]
    return (of.G(S).mean(-1) - of.gaussian).abs().mean(-1)
