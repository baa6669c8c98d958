"""From raw neuron signals to the whitened matrix that FastICA rotates."""

from __future__ import annotations

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError

# Rows handled at a time: bounds the float32 copies of a bfloat16 signal matrix.
_BLOCK = 4096
# A column whose deviation is below this share of its root mean square is constant: bfloat16 and
# float16 signals that do vary jump by 4e-3 and 5e-4, so only rounding lies underneath.
_CONSTANT = 1e-6
# Directions weaker than this share of the strongest (in variance) are rounding noise of the float32
# products below; whitening would blow them up to unit variance.
_RANK = 1e-6
# The same after the reduction, where everything is float64: only an exact loss counts.
_RANK_REDUCED = 1e-10


def zscore(X: Tensor) -> Tensor:
    """Standardise every column over time.

    Args:
        X: (n_tokens, n_signals), any floating dtype; column = one neuron's time series.

    Returns:
        (n_tokens, n_signals), float32: zero mean, unit (population) variance per column. A column
        without variance is all zero. Means and variances are summed in float64, because the
        float32 sum over 1e5 tokens loses the digits that the variance is made of.

    Raises:
        DecompositionError: fewer than two tokens, or a value that is not finite.
    """
    if X.ndim != 2 or X.shape[0] < 2:
        raise DecompositionError(
            f"z-scoring needs a (tokens, neurons) matrix of at least two tokens, got shape "
            f"{tuple(X.shape)}."
        )
    total = torch.zeros(X.shape[1], dtype=torch.float64, device=X.device)
    for block in X.split(_BLOCK):
        total += block.double().sum(0)
    mean = total / X.shape[0]
    if not torch.isfinite(mean).all():
        columns = (~torch.isfinite(mean)).nonzero().flatten()[:5].tolist()
        raise DecompositionError(
            f"the signals of neurons {columns} hold NaN or infinite values; run the calibration in "
            "bfloat16 or float32, where the model's activations do not overflow."
        )
    square = torch.zeros_like(mean)
    for block in X.split(_BLOCK):
        square += (block.double() - mean).square().sum(0)
    std = (square / X.shape[0]).sqrt()
    constant = std <= _CONSTANT * (mean.square() + std.square()).sqrt()
    scale = torch.where(constant, 0.0, 1.0 / std.masked_fill(constant, 1.0))
    return torch.cat([((block.double() - mean) * scale).float() for block in X.split(_BLOCK)])


def reduce_time(Z: Tensor, n_components: int) -> tuple[Tensor, float]:
    """Project the time axis on its leading directions: the PCA step of CanICA.

    The left singular space comes from the eigenvectors of the cheaper of the two second moments,
    ``Z Z'`` (tokens) or ``Z' Z`` (neurons). Products are float32, their sum and the
    eigendecomposition float64: squaring halves the digits, and the trailing kept directions are
    1e3 to 1e4 times weaker than the first.

    Args:
        Z: (n_tokens, n_signals), float32, z-scored over tokens.
        n_components: k, at most min(n_tokens, n_signals).

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
    if V < T:
        moment = sum((b.T @ b).double() for b in Z.split(_BLOCK))
    else:
        moment = sum((b @ b.T).double() for b in Z.split(_BLOCK, dim=1))
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0)[:n_components], vectors.flip(1)[:, :n_components]
    rank = int((values > _RANK * values[0]).sum()) if values[0] > 0 else 0
    if rank == 0:
        raise DecompositionError("no neuron varies over these tokens, so there is nothing to find.")
    values, vectors = values[:rank], vectors[:, :rank]
    # on the neurons' side the vectors are right singular ones already: C = S V'
    C = (vectors * values.sqrt()).T if V < T else vectors.T @ Z.double()
    return C.contiguous(), float(values.sum() / moment.diagonal().sum())


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
