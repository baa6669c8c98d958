"""Turns raw neuron signals into the whitened matrix that FastICA rotates.

Signals come in blocks of tokens, in their own dtype; float32 copies are made of one block at a
time, so that the signals themselves are the only large matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError

# Rows handled at a time: bounds the float32 copies of a bfloat16 signal matrix.
_BLOCK = 1024
# A column whose deviation is below this share of its root mean square is constant: bfloat16 and
# float16 signals that do vary jump by 4e-3 and 5e-4, so only rounding lies underneath.
_CONSTANT = 1e-6
# Directions weaker than this share of the strongest (in variance) are rounding noise of the float32
# products below; whitening would blow them up to unit variance.
_RANK = 1e-6
# The same after the reduction, where everything is float64: only an exact loss counts.
_RANK_REDUCED = 1e-10
# Block Krylov: directions beyond those wanted, and passes over the signals. On real signals the
# variance found is then that of the exact space to 1e-4.
_OVERSAMPLING = 16
_PASSES = 3


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

    def rows(self) -> Iterator[Tensor]:
        """Give standardised blocks of about `_BLOCK` tokens, float32."""
        waiting: list[Tensor] = []
        for part in (part for block in self.blocks for part in block.split(_BLOCK)):
            waiting.append(part)
            if sum(map(len, waiting)) >= _BLOCK:
                yield self._standardised(waiting)
                waiting = []
        if waiting:
            yield self._standardised(waiting)

    def _standardised(self, parts: list[Tensor]) -> Tensor:
        return centred(torch.cat(parts), self.mean).mul_(self.scale.float())

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
        Means and variances are summed in float64, because the float32 sum over 1e5 tokens loses the
        digits that the variance is made of.

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
    parts = [part for block in blocks for part in block.split(_BLOCK)]
    mean = sum(part.sum(0, dtype=torch.float64) for part in parts) / tokens
    if not torch.isfinite(mean).all():
        columns = (~torch.isfinite(mean)).nonzero().flatten()[:5].tolist()
        raise DecompositionError(
            f"the signals of neurons {columns} hold NaN or infinite values; run the calibration in "
            "bfloat16 or float32, where the model's activations do not overflow."
        )
    squares = (centred(part, mean).square_().sum(0, dtype=torch.float64) for part in parts)
    std = (sum(squares) / tokens).sqrt()
    return Signals(blocks, mean, column_scale(mean, std))


def centred(x: Tensor, mean: Tensor) -> Tensor:
    """Compute ``x - mean`` in float32, as exact as in float64.

    What rounding took from the mean is subtracted after it. A float64 copy of the signals would
    take most of the time of a pass.

    Args:
        x: (n, n_signals), any floating dtype.
        mean: (n_signals,), float64.
    """
    rounded = mean.float()
    if x.dtype == torch.float64:
        return (x - mean).float()
    return x.float().sub(rounded).sub_((mean - rounded).float())


def column_scale(mean: Tensor, std: Tensor) -> Tensor:
    """Compute 1 / std, and 0 for a column that only rounding makes vary."""
    constant = std <= _CONSTANT * (mean.square() + std.square()).sqrt()
    return torch.where(constant, 0.0, 1.0 / std.masked_fill(constant, 1.0))


def zscore(X: Tensor | Sequence[Tensor]) -> Tensor:
    """Write out what `standardise` stands for: (n_tokens, n_signals), float32."""
    return torch.cat(list(standardise(X).rows()))


def reduce_time(Z: Signals, n_components: int, *, exact: bool = False) -> tuple[Tensor, float]:
    """Project the time axis on its leading directions: the PCA step of CanICA.

    Small problems go through the eigenvectors of the cheaper of the two second moments, ``Z Z'``
    (tokens) or ``Z' Z`` (neurons): products in float32, their sum and the eigendecomposition in
    float64, because squaring halves the digits and the trailing kept directions are 1e3 to 1e4
    times weaker than the first. Large ones through a block Krylov space (Musco & Musco 2015, arXiv
    1504.05477) of a few passes over the signals, started from a fixed random block.

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
    width = n_components + _OVERSAMPLING
    # below this the Krylov space is not cheaper than all directions
    small = min(T, V) <= 3 * _PASSES * width
    values, vectors = _second_moment(Z) if exact or small else _krylov(Z, width)
    values, vectors = values[:n_components], vectors[:, :n_components]
    rank = int((values > _RANK * values[0]).sum()) if values[0] > 0 else 0
    if rank == 0:
        raise DecompositionError("no neuron varies over these tokens, so there is nothing to find.")
    C = (vectors[:, :rank] * values[:rank].sqrt()).T
    return C.contiguous(), float(values[:rank].sum()) / Z.variance


def _second_moment(Z: Signals) -> tuple[Tensor, Tensor]:
    """Find all variances, largest first, and their right singular vectors (n_signals, n)."""
    T, V = Z.shape
    if V <= T:
        moment = sum((rows.T @ rows).double() for rows in Z.rows())
        values, vectors = torch.linalg.eigh(moment)
        return values.flip(0), vectors.flip(1)
    rows = torch.cat(list(Z.rows()))
    moment = sum((part @ part.T).double() for part in rows.split(_BLOCK, dim=1))
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    right = rows.T.double() @ vectors
    return values, right / values.sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _krylov(Z: Signals, width: int) -> tuple[Tensor, Tensor]:
    """Find the leading ones only, as `_second_moment` gives them."""
    V = Z.shape[1]
    # drawn on the CPU: the same on every device
    block = torch.randn(V, width, generator=torch.Generator().manual_seed(0)).to(Z.mean.device)
    space = []
    for _ in range(_PASSES):
        block = sum(rows.T @ (rows @ block) for rows in Z.rows())
        block = torch.linalg.qr(block).Q
        space.append(block)
    basis = torch.linalg.qr(torch.cat(space, dim=1).double()).Q
    narrow = basis.float()
    inside = [rows @ narrow for rows in Z.rows()]
    moment = sum((part.T @ part).double() for part in inside)
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0), basis @ vectors.flip(1)


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
    values, vectors = torch.linalg.eigh(C @ C.T / C.shape[1])
    kept = values > _RANK_REDUCED * values[-1]
    return (vectors[:, kept] / values[kept].sqrt()).T.flip(0) @ C
