"""Computes what a solver asks of the sources ``Y = W X``: means over all samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcnet_plugin.ica.contrast import CONTRASTS
from funcnet_plugin.products import tf32

# A CPU takes so many samples of one start at a time: sources and what is made of them stay in the
# cache, 2.2 times faster than all samples at once (k = 128, 3072 and 22016 samples, one thread).
_SAMPLES = 1024
# Another device takes all starts at once, and so many samples that this memory holds them.
_BYTES = 2**30


class Means(NamedTuple):
    """Holds means over samples, for each of n unmixing matrices.

    Attributes:
        cross: E g(y_i) y_j, (n, k, k).
        slope: E g'(y_i), (n, k).
        value: E G(y_i), (n, k).
    """

    cross: Tensor
    slope: Tensor
    value: Tensor


class Expectations:
    """Computes `Means` of whitened signals, a part of the samples at a time.

    On a GPU the products are TF32: the same optima are reached in as many steps (measured with
    emulated rounding on layer 15 of SmolLM2: contrast 1.779 both ways).

    Args:
        X: (k, n_samples), float32, whitened.
        contrast: a name in `CONTRASTS`.
    """

    def __init__(self, X: Tensor, contrast: str) -> None:
        self._X, self._contrast = X, CONTRASTS[contrast]
        self._together = X.device.type != "cpu"

    def __call__(self, W: Tensor) -> Means:
        """Compute them for W (n, k, k), float32, orthonormal rows."""
        if not self._together:
            parts = self._X.split(_SAMPLES, dim=1)
            each = [self._of_parts(w[None], parts) for w in W]
            return Means(*map(torch.cat, zip(*each, strict=True)))
        n, k = W.shape[:2]
        samples = max(_SAMPLES, _BYTES // (3 * n * k * W.element_size()))
        with tf32():
            return self._of_parts(W, self._X.split(samples, dim=1))

    def _of_parts(self, W: Tensor, parts: tuple[Tensor, ...]) -> Means:
        of, n_samples = self._contrast, self._X.shape[1]
        cross, slope, value = torch.zeros_like(W), 0.0, 0.0
        for part in parts:
            Y = (W.flatten(0, 1) @ part).unflatten(0, W.shape[:2])
            gY = of.g(Y)
            cross.baddbmm_(gY, Y.mT)
            if of.from_product is None:
                slope += of.slope(Y, gY) * (part.shape[1] / n_samples)
                value += of.G(Y).sum(-1) / n_samples
        cross /= n_samples
        if of.from_product is not None:
            slope, value = of.from_product(cross.diagonal(dim1=-2, dim2=-1))
        return Means(cross, slope, value)
