"""Reduces one group's signals of all layers along the time axis they share.

Networks across layers need one decomposition of ``[Z_1 ... Z_L]``, far too wide to keep. But only
the time axis couples the layers: a common basis Q of it is all that the reduction needs. Layers
come one after another; each is z-scored exactly, the basis is merged with the layer's own leading
time courses and truncated, and every layer is kept as its coordinates ``Q' Z_l``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.signals import Signals, reduce_time

# Time courses this much weaker than the strongest (in variance) are rounding noise.
_RANK = 1e-6


class LayeredSignals:
    """Merges and truncates; memory ``n_rows * (n_tokens + all signals)`` float32.

    Args:
        n_rows: directions of time that are kept, a few times the number of components. With as
            many as there are tokens nothing is lost.
    """

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._basis: Tensor | None = None  # (n_tokens, n_rows), orthonormal columns
        self._sizes: Tensor | None = None  # (n_rows,), singular values
        self._coordinates: dict[int, Tensor] = {}  # layer -> (n_rows, n_signals)
        self._variance = 0.0

    @property
    def n_tokens(self) -> int:
        return 0 if self._basis is None else len(self._basis)

    def add(self, layer: int, Z: Signals) -> None:
        """Take in the standardised signals of one layer: each layer once, with the same tokens.

        Raises:
            DecompositionError: another number of tokens than the layers before, or no variance.
        """
        n_tokens, n_signals = Z.shape
        if self._basis is not None and len(self._basis) != n_tokens:
            raise DecompositionError(
                f"layer {layer} saw {n_tokens} tokens of a group and the layers before it "
                f"{len(self._basis)}; networks across layers need the same tokens in all of them."
            )
        if self._basis is not None:  # may come from a file
            self._basis, self._sizes = self._basis.to(Z.mean.device), self._sizes.to(Z.mean.device)
            self._coordinates = {i: B.to(Z.mean.device) for i, B in self._coordinates.items()}
        own, _ = reduce_time(Z, min(self._n_rows, n_tokens, n_signals))
        directions = torch.nn.functional.normalize(own, dim=1).T.float()
        courses = torch.cat([rows @ directions for rows in Z.rows(reuse=True)])
        if self._basis is None:
            self._basis, self._sizes = self._orthonormal(courses)
        else:
            merged = torch.cat([self._basis * self._sizes, courses], dim=1)
            basis, self._sizes = self._orthonormal(merged)
            turn = basis.T @ self._basis
            self._basis = basis
            self._coordinates = {layer_: turn @ B for layer_, B in self._coordinates.items()}
        parts, start = [], 0
        for rows in Z.rows(reuse=True):
            parts.append(self._basis[start : start + len(rows)].T @ rows)
            start += len(rows)
        self._coordinates[layer] = sum(parts)
        self._variance += Z.variance

    def state(self) -> tuple[dict[str, Tensor], float]:
        """Give tensors and the variance seen, for `load_state` of another run."""
        layers = {f"layer/{layer}": B for layer, B in self._coordinates.items()}
        return {"basis": self._basis, "sizes": self._sizes} | layers, self._variance

    def load_state(self, tensors: dict[str, Tensor], variance: float) -> None:
        self._basis, self._sizes, self._variance = tensors["basis"], tensors["sizes"], variance
        numbers = sorted(int(key.removeprefix("layer/")) for key in tensors if "layer/" in key)
        self._coordinates = {layer: tensors[f"layer/{layer}"] for layer in numbers}

    def _orthonormal(self, courses: Tensor) -> tuple[Tensor, Tensor]:
        """Find the leading directions of the columns, and their singular values."""
        gram = courses.double().T @ courses.double()
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0)[: self._n_rows], vectors.flip(1)[:, : self._n_rows]
        kept = values > _RANK * values[0]
        sizes = values[kept].sqrt()
        basis = courses.double() @ vectors[:, kept] / sizes
        return basis.float(), sizes.float()

    def reduce(self, n_components: int) -> tuple[Tensor, dict[int, slice], float]:
        """Reduce the signals of all layers at once.

        Args:
            n_components: k.

        Returns:
            C: (k', n_signals of all layers), float64, as `reduce_time`.
            columns: which of them belong to each layer.
            explained: share of the variance of all signals inside C.
        """
        columns, start = {}, 0
        for layer, B in self._coordinates.items():
            columns[layer] = slice(start, start + B.shape[1])
            start += B.shape[1]
        gram = sum((B @ B.T).double() for B in self._coordinates.values())
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0)[:n_components], vectors.flip(1)[:, :n_components]
        kept = values > _RANK * values[0]
        turn = vectors[:, kept].T
        C = torch.cat([turn @ B.double() for B in self._coordinates.values()], dim=1)
        return C, columns, float(values[kept].sum()) / self._variance
