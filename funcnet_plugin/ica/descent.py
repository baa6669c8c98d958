"""Descends over rotations by preconditioned L-BFGS, a batch of starts at once.

All starts take the same steps of arithmetic in every iteration and masks say for which they count,
so the host need not know how a start fares: it looks now and then which have ended, and takes these
out of the batch. One iteration evaluates the contrast once: a step that does not lower the loss is
not taken, and half of it is tried in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from funcnet_plugin.ica.expectations import Expectations, Means

# Iterations between two looks at which starts have ended. A look at a GPU waits for all that was
# sent there; at a CPU it costs nothing.
_LOOK = 8
_LOOK_AT = {"cpu": 1}
# Pairs that L-BFGS remembers; 7 take as many iterations and are 12 to 24% slower.
_MEMORY = 3
# Curvature that a pair of components is given at least: two Gaussian ones have none.
_CURVATURE = 1e-2
# A start is content with where it stands when so small a share of a step does not lower its loss.
_SHORTEST = 2.0**-10


@dataclass
class Descended:
    """Says where n starts ended.

    Attributes:
        W: (n, k, k), float32, not finite where a start broke down.
        steps: (n,), iterations taken.
        turn: (n,), by how much the next step would turn a component at most, ``1 - cos``.
        converged: (n,), bool.
    """

    W: Tensor
    steps: Tensor
    turn: Tensor
    converged: Tensor

    def write(self, batch: _Batch, turn: Tensor, tol: float) -> None:
        """Write down where starts of a batch stand; those that go on are written again."""
        broken = ~torch.isfinite(turn)
        self.W[batch.index] = batch.W.masked_fill(broken[:, None, None], torch.nan)
        self.steps[batch.index] = batch.steps
        self.turn[batch.index] = turn
        self.converged[batch.index] = turn < tol


class _Model(NamedTuple):
    """Describes the loss around a point.

    Attributes:
        loss: (n,), float64, ``sum_i s_i E G(y_i)``.
        sign: (n, k), s.
        gradient: (n, k, k), skew, over rotations.
        curvature: (n, k, k), of each pair of components: the part of the Hessian that is left when
            the sources are independent.
    """

    loss: Tensor
    sign: Tensor
    gradient: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, means: Means) -> _Model:
        kappa = means.slope - means.cross.diagonal(dim1=-2, dim2=-1)
        sign = torch.where(kappa < 0, -1.0, 1.0).to(kappa)
        signed = sign.unsqueeze(-1) * means.cross
        size = kappa.abs() / 2
        curvature = (size.unsqueeze(-1) + size.unsqueeze(-2)).clamp_min(_CURVATURE)
        loss = (sign * means.value).double().sum(-1)
        return cls(loss, sign, (signed - signed.mT) / 2, curvature)

    def turn(self) -> Tensor:
        """Compute by how much Newton's step turns a component at most, ``1 - cos``."""
        return 0.5 * (self.gradient / self.curvature).square().sum(-1).amax(-1)


class _Memory(NamedTuple):
    """Holds the last pairs of L-BFGS, the newest last, along the second axis.

    Attributes:
        steps, changes: (n, m, k, k), steps taken and what they changed of the gradient.
        weights: (n, m), 1 / (step, change); 0 for a place that is empty.
    """

    steps: Tensor
    changes: Tensor
    weights: Tensor

    @classmethod
    def empty(cls, W: Tensor) -> _Memory:
        n, k = W.shape[:2]
        past = W.new_zeros(n, _MEMORY, k, k)
        return cls(past, past, W.new_zeros(n, _MEMORY))

    def with_pair(self, step: Tensor, change: Tensor, taken: Tensor, same: Tensor) -> _Memory:
        """Remember a step that was taken, unless signs changed: another function descends then."""
        product = (step * change).sum((-2, -1))
        useful = taken & same & (product > 0)
        weights = self.weights.masked_fill((taken & ~same)[:, None], 0.0)
        pair = (step, change, 1.0 / product)
        return _Memory(
            *(
                _where(useful, torch.cat([past[:, 1:], new.unsqueeze(1)], 1), past)
                for past, new in zip((self.steps, self.changes, weights), pair, strict=True)
            )
        )

    def direction(self, model: _Model) -> Tensor:
        """Find the next step by the two loops of L-BFGS, with the curvature as its first guess.

        It is never more than one radian per pair, and the plain Newton step where the memory points
        uphill.
        """
        q, shares = model.gradient, []
        for j in reversed(range(_MEMORY)):
            share = self.weights[:, j] * (self.steps[:, j] * q).sum((-2, -1))
            shares.insert(0, share)
            q = q - share[:, None, None] * self.changes[:, j]
        z = q / model.curvature
        for j, share in enumerate(shares):
            rest = share - self.weights[:, j] * (self.changes[:, j] * z).sum((-2, -1))
            z = z + rest[:, None, None] * self.steps[:, j]
        downhill = (z * model.gradient).sum((-2, -1)) > 0
        z = _where(downhill, z, model.gradient / model.curvature)
        return -z / z.abs().amax((-2, -1), keepdim=True).clamp_min(1.0)


class _Batch(NamedTuple):
    """Holds the starts that have not left, along the first axis of every tensor.

    Attributes:
        index: (n,), which of all starts these are.
        W: (n, k, k).
        length: (n,), share of the next step that is tried.
        steps: (n,), tried so far.
        ended: (n,), bool; such a start stays where it is.
    """

    index: Tensor
    W: Tensor
    model: _Model
    memory: _Memory
    length: Tensor
    steps: Tensor
    ended: Tensor

    def only(self, rows: Tensor) -> _Batch:
        """Keep some of the starts."""
        return _Batch(
            *(type(t)(*(u[rows] for u in t)) if isinstance(t, tuple) else t[rows] for t in self)
        )

    def try_step(self, expect: Expectations) -> _Batch:
        """Take the steps that lower the loss."""
        step = self.memory.direction(self.model) * self.length[:, None, None]
        tried = _rotation(step) @ self.W
        means = expect(tried)
        there = _Model.of(means)
        # at the signs of here: where they change, the function that descends does
        loss = (self.model.sign * means.value).double().sum(-1)
        taken = (loss < self.model.loss) & ~self.ended
        memory = self.memory.with_pair(
            step,
            there.gradient - self.model.gradient,
            taken,
            (there.sign == self.model.sign).all(-1),
        )
        return _Batch(
            self.index,
            _where(taken, tried, self.W),
            _Model(*(_where(taken, t, h) for t, h in zip(there, self.model, strict=True))),
            memory,
            torch.where(taken, 1.0, self.length / 2),
            self.steps + ~self.ended,
            self.ended,
        )


def descend(expect: Expectations, W: Tensor, tol: float, max_iter: int) -> Descended:
    """Lower ``sum_i s_i E G(y_i)`` from every start until it turns by less than `tol`.

    Args:
        expect: of the whitened signals.
        W: (n, k, k), float32, orthonormal.
        tol: see `Descended.turn`.
        max_iter: steps per start, those included that were not taken.
    """
    n = len(W)
    none = torch.zeros(n, dtype=torch.long, device=W.device)
    found = Descended(W.clone(), none.clone(), W.new_full((n,), torch.nan), none.bool())
    batch = _Batch(
        torch.arange(n, device=W.device), W, _Model.of(expect(W)), _Memory.empty(W),
        W.new_ones(n), none, none.bool(),
    )  # fmt: skip
    look = _LOOK_AT.get(W.device.type, _LOOK)
    for iteration in range(max_iter + 1):
        turn = batch.model.turn()
        ended = batch.ended | ~(turn >= tol) | (batch.length < _SHORTEST)  # NaN ends a start, too
        batch = batch._replace(ended=ended)
        last = iteration == max_iter
        if last or iteration % look == 0:
            going = [j for j, over in enumerate(ended.tolist()) if not over]
            if last or len(going) < len(ended):
                found.write(batch, turn, tol)
                if last or not going:
                    break
                batch = batch.only(torch.tensor(going, device=W.device))
        batch = batch.try_step(expect)
    return found


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Choose along the first axis."""
    return torch.where(rows.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _rotation(skew: Tensor) -> Tensor:
    """Make Cayley's rotation ``(I - A/2)^-1 (I + A/2)``: orthogonal, and exp(A) to second order.

    It equals ``(I + A/2)^2 (I + A'A/4)^-1``, of which the last factor has a Cholesky decomposition:
    that is done for a batch at once.
    """
    half = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device) + skew / 2
    L = torch.linalg.cholesky_ex(half.mT @ half).L
    # of R = half^2 (L L')^-1 the transpose, by two triangles
    inner = torch.linalg.solve_triangular(L, (half @ half).mT, upper=False)
    return torch.linalg.solve_triangular(L.mT, inner, upper=True).mT
