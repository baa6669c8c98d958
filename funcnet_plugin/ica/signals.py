"""Turns raw neuron signals into the whitened matrix that ICA rotates.

Signals come in blocks of tokens, in their own dtype; float32 copies are made of a part at a time,
so that the signals themselves are the only large matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.columns import ColumnMoments, parts
from funcnet_plugin.ica.krylov import PASSES, eigenvectors, leading

# Columns of a wide matrix that are multiplied at once in float32; sums of these are float64.
_BLOCK = 1024
# Directions weaker than this share of the strongest (in variance) are rounding noise of the float32
# products below; whitening would blow them up to unit variance.
_RANK = 1e-6
# The same after the reduction, where everything is float64: only an exact loss counts.
_RANK_REDUCED = 1e-10
# Directions of a block Krylov space beyond those wanted.
OVERSAMPLING = 16


@dataclass(frozen=True)
class Signals:
    """Holds one group's signals, standardised on the fly: row t is ``(x_t - mean) * scale``.

    Attributes:
        blocks: each (n_tokens, n_signals), any floating dtype.
        mean, scale: (n_signals,), float64; scale is 1 / standard deviation, 0 for a constant.
    """

    blocks: tuple[Tensor, ...]
    mean: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(block) for block in self.blocks), len(self.mean)

    def rows(self, *, reuse: bool = False) -> Iterator[Tensor]:
        """Give standardised parts, (n, n_signals), float32.

        Args:
            reuse: give all of them in the same memory, for a reader that keeps none.
        """
        scale = self.scale.float()
        for part in parts(self.blocks, self.mean, reuse=reuse):
            yield part.mul_(scale)

    @property
    def variance(self) -> float:
        """Sum the squares over all tokens and signals."""
        return float((self.scale > 0).sum()) * self.shape[0]


def standardise(X: Tensor | Sequence[Tensor]) -> Signals:
    """Standardise every column over time (z-scores). Nothing is copied.

    Args:
        X: (n_tokens, n_signals), any floating dtype, or blocks of its rows; column = one neuron's
            time series.

    Returns:
        zero mean and unit (population) variance per column; a column without variance is all zero.

    Raises:
        DecompositionError: fewer than two tokens, or a value that is not finite.
    """
    blocks = (X,) if isinstance(X, Tensor) else tuple(X)
    tokens = sum(len(block) for block in blocks)
    if any(block.ndim != 2 for block in blocks) or tokens < 2:
        raise DecompositionError(
            f"z-scoring needs a (tokens, neurons) matrix of at least two tokens, got shape "
            f"{tuple(blocks[0].shape)}."
        )
    columns = ColumnMoments(blocks[0].shape[1], blocks[0].device)
    for block in blocks:
        columns.add(block)
    if columns.unknown():
        raise DecompositionError(
            f"the signals of neurons {columns.unknown()} hold NaN or infinite values; run the "
            "calibration in bfloat16 or float32, where the model's activations do not overflow."
        )
    return Signals(blocks, columns.mean, columns.scale)


def zscore(X: Tensor | Sequence[Tensor]) -> Tensor:
    """Write out what `standardise` stands for: (n_tokens, n_signals), float32."""
    return torch.cat(list(standardise(X).rows()))


def reduce_time(Z: Signals, n_components: int, *, exact: bool = False) -> tuple[Tensor, float]:
    """Project the time axis on its leading directions: the PCA step of CanICA.

    Small problems go through the eigenvectors of the cheaper of the two second moments, ``Z Z'``
    (tokens) or ``Z' Z`` (neurons): products in float32, their sum and the eigendecomposition in
    float64, because squaring halves the digits and the trailing kept directions are 1e3 to 1e4
    times weaker than the first. Large ones go through a block Krylov space, see `krylov.leading`.

    Args:
        Z: z-scored signals.
        n_components: k, at most min(n_tokens, n_signals).
        exact: use the second moment whatever the size.

    Returns:
        C: (k', n_signals), float64, rows ordered by variance, ``C = U' Z`` with U the leading left
            singular vectors. k' < k if Z has fewer than k directions above rounding noise.
        explained: share of the variance of Z inside C, 0 to 1.

    Raises:
        DecompositionError: k larger than the matrix allows, or a matrix that is all zero.
    """
    T, V = Z.shape
    if not 1 <= n_components <= min(T, V):
        raise DecompositionError(
            f"n_components={n_components} does not fit signals of {T} tokens x {V} neurons; it "
            f"must lie between 1 and {min(T, V)}."
        )
    if exact or takes_second_moment(T, V, n_components):
        values, vectors = _second_moment(Z, n_components)
    else:
        # drawn on the CPU: the same on every device
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(V, n_components + OVERSAMPLING, generator=generator).to(Z.mean.device)
        values, vectors = leading(partial(Z.rows, reuse=True), block, n_components)
    rank = int((values > _RANK * values[0]).sum()) if values[0] > 0 else 0
    if rank == 0:
        raise DecompositionError("no neuron varies over these tokens, so there is nothing to find.")
    C = (vectors[:, :rank] * values[:rank].sqrt()).T
    return C.contiguous(), float(values[:rank].sum()) / Z.variance


def takes_second_moment(n_tokens: int, n_signals: int, n_components: int) -> bool:
    """Tell whether the Krylov space would not be cheaper than all directions."""
    return min(n_tokens, n_signals) <= 3 * PASSES * (n_components + OVERSAMPLING)


def _second_moment(Z: Signals, n: int) -> tuple[Tensor, Tensor]:
    """Find the n largest variances and their right singular vectors, (n_signals, n), float64."""
    T, V = Z.shape
    if V <= T:
        moment = sum((rows.T @ rows).double() for rows in Z.rows(reuse=True))
        values, vectors = eigenvectors(moment)
        return values.flip(0)[:n], vectors.flip(1)[:, :n]
    rows = torch.cat(list(Z.rows()))
    moment = sum((part @ part.T).double() for part in rows.split(_BLOCK, dim=1))
    values, vectors = eigenvectors(moment)
    values, vectors = values.flip(0)[:n].clamp_min(0.0), vectors.flip(1)[:, :n]
    right = rows.T.double() @ vectors
    return values, right / values.sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def whiten(C: Tensor) -> Tensor:
    """Centre and whiten over neurons: spatial ICA takes neurons as samples.

    Args:
        C: (k, n_signals), float64.

    Returns:
        X: (k', n_signals), float64, ``X X' / n_signals = I``. k' = k - 1 where centring removes a
            direction (all others carry variance already).
    """
    C = C - C.mean(1, keepdim=True)
    # Through the k x k covariance: k is 100 times smaller than the number of neurons.
    values, vectors = eigenvectors(C @ C.T / C.shape[1])
    kept = values > _RANK_REDUCED * values[-1]
    return (vectors[:, kept] / values[kept].sqrt()).T.flip(0) @ C
