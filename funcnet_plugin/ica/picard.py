"""Runs Picard-O: orthogonal ICA by preconditioned L-BFGS, several starts in one batch.

Ablin, Cardoso & Gramfort 2018, arXiv 1711.10873.

Its fixed points are those of symmetric FastICA: every component leaves the Gaussian value of the
contrast, so ``sum_i s_i E G(y_i)`` descends over the orthogonal group, s_i being the sign of
``E g'(y_i) - E g(y_i) y_i``. FastICA has no step size there and turns for hundreds of iterations on
real signals; a descent ends. Its first steps, however, are long and find better optima than a
descent from a random start does, so they come first.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from funcnet_plugin.ica.contrast import CONTRASTS, expectation
from funcnet_plugin.ica.fastica import decorrelate, rescue
from funcnet_plugin.ica.runs import ICAResult, RunReport, check_white, starting_points

# FastICA steps that come first. With 15 the contrast reached on real signals is FastICA's own.
_LONG_STEPS = 15
# Pairs that L-BFGS remembers.
_MEMORY = 7
# Curvature that a pair of components is given at least: two Gaussian ones have none.
_CURVATURE = 1e-2
# Starts of one batch hold three matrices like the signals each; more are done in several batches.
_BATCH_BYTES = 256 * 2**20
# Step halvings before a start is content with where it stands.
_HALVINGS = 10


def picard(
    X: Tensor,
    *,
    contrast: str = "cube",
    tol: float = 1e-4,
    max_iter: int = 300,
    n_init: int = 1,
    seed: int = 0,
    w_init: Tensor | None = None,
) -> ICAResult:
    """Rotate whitened data to independent rows, from ``n_init`` starts.

    Works in float32: steps are rotations, so nothing grows, and the result is made orthonormal in
    float64. Never returns a value that is not finite: a start that breaks down is done by `fastica`
    and its rescues instead, and its report says so.

    Args:
        X: (k, n_samples), float32 or float64, whitened: ``X X' / n_samples = I``.
        contrast: "cube", "logcosh" or "exp".
        tol: a start has converged once the Newton step turns no component by more, measured as
            FastICA does: ``1 - cos`` of the angle.
        max_iter: iterations per start, FastICA steps included.
        n_init, seed, w_init: see `fastica`; the starts are the same.

    Raises:
        DecompositionError: as `fastica`.
    """
    check_white(X, contrast)
    starts = starting_points(X.shape[0], n_init, seed, w_init)
    X32 = X.float()
    long_steps = min(_LONG_STEPS, max_iter)
    W, runs = [], []
    for batch in starts.split(starts_together(X32.numel())):
        descent = _Descent(
            X32, *_long_steps(X32, batch.to(X.device), contrast, long_steps), contrast
        )
        descent.run(tol, max_iter - long_steps)
        unmixing, usable = decorrelate(descent.W.double())
        for i, start in enumerate(batch):
            if usable[i]:
                w, run = unmixing[i].to(X), descent.report(i, long_steps)
            else:
                w, run = rescue(X, start, contrast, tol, max_iter, seed, len(runs))
                run = replace(run, promoted=True)  # ours is float32, whatever X is
            W.append(w)
            runs.append(run)
    return ICAResult(torch.stack(W), tuple(runs))


def starts_together(size: int) -> int:
    """Say how many starts are done in one batch, on signals of so many numbers, k * n_samples."""
    return max(1, _BATCH_BYTES // (3 * 4 * size))


def _long_steps(X: Tensor, W: Tensor, contrast: str, steps: int) -> tuple[Tensor, Tensor]:
    """Take steps of FastICA, converged or not; a start that breaks down stays where it was.

    W comes, and decorrelation is, in float64: the rows of an update differ in length like the
    kurtoses of their components, by 1e5 and more, and it squares that.
    """
    g = CONTRASTS[contrast]
    W, finite = decorrelate(W)
    W = W.to(X)
    for _ in range(steps):
        gY, slope = g(W @ X)
        update = gY @ X.T / X.shape[1] - slope.unsqueeze(-1) * W
        new, usable = decorrelate(update.double())
        W = torch.where(usable[:, None, None], new.to(W), W)
    return W, finite


class _Descent:
    """Descends over rotations by L-BFGS, a batch of starts; each leaves when it has converged.

    The active starts come first in every tensor with a leading batch axis but `W`, which holds all.
    """

    def __init__(self, X: Tensor, W: Tensor, finite: Tensor, contrast: str) -> None:
        self.X, self.contrast = X, contrast
        self.W = torch.where(finite[:, None, None], W, torch.nan)
        self._turn = [float("nan")] * len(W)
        self._steps = [0] * len(W)
        self._done = [False] * len(W)
        self._active = finite.nonzero().flatten()

    def report(self, i: int, before: int) -> RunReport:
        return RunReport(self._done[i], before + self._steps[i], self._turn[i])

    def run(self, tol: float, max_iter: int) -> None:
        if len(self._active) == 0:
            return
        W = self.W[self._active]
        cross, slope, value = self._evaluate(W)
        sign = gradient = step = None
        memory: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, changes of gradient, usable
        for iteration in range(max_iter + 1):
            before, previous = gradient, sign
            sign, gradient, curvature = _model(cross, slope)
            if before is not None:
                memory = _remember(memory, step, gradient - before, (sign == previous).all(-1))
            turn = 0.5 * (gradient / curvature).square().sum(-1).amax(-1)
            self.W[self._active] = W
            still = []
            for j, i in enumerate(self._active.tolist()):
                self._steps[i], self._turn[i] = iteration, float(turn[j])
                self._done[i] = self._turn[i] < tol
                if not math.isfinite(self._turn[i]):
                    self.W[i] = math.nan
                elif not self._done[i]:
                    still.append(j)
            if iteration == max_iter or not still:
                return
            if len(still) < len(self._active):
                rows = torch.tensor(still, device=W.device)
                self._active = self._active[rows]
                W, cross, slope, value, sign, gradient, curvature = (
                    t[rows] for t in (W, cross, slope, value, sign, gradient, curvature)
                )
                memory = [tuple(t[rows] for t in entry) for entry in memory]
            direction = _direction(gradient, curvature, memory)
            W, step, (cross, slope, value) = self._search(W, direction, sign, (cross, slope, value))

    def _evaluate(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute E g(y_i) y_j, E g'(y_i) and E G(y_i) for every start."""
        Y = W @ self.X
        gY, slope = CONTRASTS[self.contrast](Y)
        return gY @ Y.mT / self.X.shape[1], slope, expectation(Y, gY, self.contrast)

    def _search(
        self, W: Tensor, direction: Tensor, sign: Tensor, here: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Halve the step of each start until its loss falls; one that never falls stays."""
        loss = (sign * here[2]).double().sum(-1)
        length = torch.ones(len(W), dtype=W.dtype, device=W.device)
        found, at = W.clone(), tuple(t.clone() for t in here)
        waiting = torch.arange(len(W), device=W.device)
        for _ in range(_HALVINGS):
            tried = _rotation(direction[waiting] * length[waiting, None, None]) @ W[waiting]
            there = self._evaluate(tried)
            falls = (sign[waiting] * there[2]).double().sum(-1) < loss[waiting]
            found[waiting[falls]] = tried[falls]
            for mine, new in zip(at, there, strict=True):
                mine[waiting[falls]] = new[falls]
            waiting = waiting[~falls]
            if len(waiting) == 0:
                break
            length[waiting] /= 2
        length[waiting] = 0.0
        return found, direction * length[:, None, None], at


def _model(cross: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the signs, the gradient over rotations, and the curvature of each pair of components.

    The curvature is the part of the Hessian that is left when the sources are independent.
    """
    kappa = slope - cross.diagonal(dim1=-2, dim2=-1)
    sign = torch.where(kappa < 0, -1.0, 1.0).to(cross)
    signed = sign.unsqueeze(-1) * cross
    curvature = (kappa.abs().unsqueeze(-1) + kappa.abs().unsqueeze(-2)) / 2
    return sign, (signed - signed.mT) / 2, curvature.clamp_min(_CURVATURE)


def _remember(
    memory: list[tuple[Tensor, Tensor, Tensor]], step: Tensor, change: Tensor, same: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keep a step, unless the start's signs changed: it descends another function then."""
    curved = (step * change).sum((-2, -1)) > 0
    kept = [(s, c, usable & same) for s, c, usable in memory[-(_MEMORY - 1) :]]
    return [*kept, (step, change, same & curved)]


def _direction(
    gradient: Tensor, curvature: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """Find the next step by the two loops of L-BFGS, with the curvature as its first guess.

    It is never more than one radian per pair, and the plain Newton step where the memory points
    uphill.
    """
    q, used = gradient, []
    for step, change, usable in reversed(memory):
        product = (step * change).sum((-2, -1))
        weight = torch.where(usable, 1.0 / product, 0.0)
        alpha = weight * (step * q).sum((-2, -1))
        used.append((weight, alpha))
        q = q - alpha[:, None, None] * change
    z = q / curvature
    for (step, change, _), (weight, alpha) in zip(memory, reversed(used), strict=True):
        beta = weight * (change * z).sum((-2, -1))
        z = z + (alpha - beta)[:, None, None] * step
    uphill = (z * gradient).sum((-2, -1)) <= 0
    z = torch.where(uphill[:, None, None], gradient / curvature, z)
    return -z / z.abs().amax((-2, -1), keepdim=True).clamp_min(1.0)


def _rotation(skew: Tensor) -> Tensor:
    """Make Cayley's rotation: orthogonal, and exp(skew) to second order."""
    half = skew / 2
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity - half, identity + half)
