"""Finds the leading directions of signals too large for their second moment.

A block Krylov space (Musco & Musco 2015, arXiv 1504.05477) of a few passes over the signals,
started from a fixed random block: the space of Z'Z on that block, again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Passes over the signals. On real ones the variance found is then that of the exact space to 1e-4.
PASSES = 3
# Below this size a host finds eigenvectors sooner than a GPU does.
_SMALL = 512
# Tokens multiplied at once in float32; sums of these are float64.
_TOKENS = 1024


def eigenvectors(M: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``torch.linalg.eigh``, of a small matrix on the CPU."""
    values, vectors = torch.linalg.eigh(M.cpu() if len(M) <= _SMALL else M)
    return values.to(M.device), vectors.to(M.device)


def leading(
    rows: Callable[[], Iterator[Tensor]], block: Tensor, n_directions: int
) -> tuple[Tensor, Tensor]:
    """Find the leading right singular vectors of the matrix whose rows come in parts.

    What a block's products with the signals are is kept from the pass that needs them anyway, so
    the last block alone takes one more.

    Args:
        rows: starts a pass over Z, in parts (n, n_signals), float32, not kept.
        block: (n_signals, width), random, float32.
        n_directions: how many are wanted, at most `width`.

    Returns:
        values: (n_directions,), float64, squared singular values, largest first.
        vectors: (n_signals, n_directions), float64, orthonormal.
    """
    basis: list[Tensor] = []
    courses: list[Tensor] = []  # of the blocks, Z @ block
    for _ in range(PASSES):
        image, course = torch.zeros_like(block), []
        for part in rows():
            course.append(part @ block)
            image.addmm_(part.T, course[-1])
        if basis:
            courses.append(torch.cat(course))
        block = _orthonormal(image, basis)
        basis.append(block)
    courses.append(torch.cat([part @ block for part in rows()]))
    split = torch.cat(courses, 1).split(_TOKENS)
    values, vectors = eigenvectors(sum((part.T @ part).double() for part in split))
    turn = vectors.flip(1)[:, :n_directions].float()
    return values.flip(0)[:n_directions], (torch.cat(basis, 1) @ turn).double()


def _orthonormal(block: Tensor, before: list[Tensor]) -> Tensor:
    """Make the columns of a block orthonormal, and orthogonal to the blocks before it.

    Cholesky decompositions of the Gram matrix do it, in float64 because it squares the condition,
    twice because the first leaves the weak directions loose (Yamamoto et al. 2015; shifted as in
    Fukaya et al. 2020, so that directions of rounding noise do no harm).
    """
    for _ in range(2):
        for other in before:
            block = block - other @ (other.T @ block)
        exact = block.double()
        gram = exact.T @ exact
        noise = len(gram) * torch.finfo(gram.dtype).eps * gram.diagonal().sum()
        gram.diagonal().add_(noise + torch.finfo(gram.dtype).tiny)
        L = torch.linalg.cholesky_ex(gram).L
        block = torch.linalg.solve_triangular(L.T, exact, upper=True, left=False).float()
    return block
