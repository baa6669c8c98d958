"""Runs symmetric FastICA (Hyvarinen 1999, doi:10.1109/72.761722), several starts in one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.contrast import CONTRASTS, negentropy
from funcnet_plugin.ica.polar import polar
from funcnet_plugin.ica.runs import (
    ICAResult,
    RunReport,
    check_white,
    initial_unmixing,
    starting_points,
)

# Starts tried per run after float64 and damping did not help; each new one has its own seed.
_MAX_RESTARTS = 5


def fastica(
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

    A start that has not converged after `max_iter` gives the best point it visited, by contrast: on
    real signals the iteration may wander for ever, and its last point is an accident.

    Never returns a value that is not finite. A start whose update overflows or turns singular is
    redone in float64, then with damped steps, then from other starting points; each of these is in
    its report, as is a start that did not converge.

    Args:
        X: (k, n_samples), float32 or float64, whitened: ``X X' / n_samples = I``. float64 is the
            safe choice: cube loses orthogonality in float32 on real signals.
        contrast: "cube", "logcosh" or "exp".
        tol: a start has converged once no component turns by more, see RunReport.final_tolerance.
        max_iter: iterations per start.
        n_init: number of starts, run as one batch on the same X.
        seed: start i uses the random stream (seed, i): more starts never change the first ones.
        w_init: (n_init, k, k) or (k, k), starting points instead of random ones.

    Raises:
        DecompositionError: X is not finite, an unknown contrast, or no start gives finite values.
    """
    check_white(X, contrast)
    starts = starting_points(X.shape[0], n_init, seed, w_init)
    batch = _iterate(X, starts.to(X), contrast, tol, max_iter)
    W, runs = [], []
    for i, start in enumerate(starts):
        if batch.failed[i]:
            w, run = rescue(X, start, contrast, tol, max_iter, seed, i)
        else:
            w, run = batch.W[i], batch.report(i)
        W.append(w)
        runs.append(run)
    return ICAResult(torch.stack(W), tuple(runs))


@dataclass
class _Batch:
    W: Tensor  # (n, k, k)
    n_iter: list[int]
    limit: list[float]
    converged: list[bool]
    failed: list[bool]
    damped: list[int]

    def report(self, i: int, **extra) -> RunReport:
        return RunReport(
            self.converged[i], self.n_iter[i], self.limit[i], damped_steps=self.damped[i], **extra
        )


def _iterate(
    X: Tensor, W: Tensor, contrast: str, tol: float, max_iter: int, *, damp: bool = False
) -> _Batch:
    """Run all starts; each leaves the batch as soon as it has converged or failed."""

    def best_visited(current: Tensor, Y: Tensor) -> None:
        reached = negentropy(Y, contrast)
        better = reached > peak[active]
        peak[active[better]] = reached[better]
        best[active[better]] = current[better]

    n = W.shape[0]
    of = CONTRASTS[contrast]
    W, usable = polar(W)
    out = _Batch(W.clone(), [0] * n, [float("nan")] * n, [False] * n, (~usable).tolist(), [0] * n)
    best, peak = out.W.clone(), W.new_full((n,), float("-inf"))
    active = usable.nonzero().flatten()
    for iteration in range(1, max_iter + 1):
        if len(active) == 0:
            break
        current = out.W[active]
        Y = current @ X
        best_visited(current, Y)
        gY = of.g(Y)
        update = gY @ X.T / X.shape[1] - of.slope(Y, gY).unsqueeze(-1) * current
        new, usable = polar(update)
        turned = ((new * current).sum(-1).abs() - 1.0).abs().amax(-1)
        if damp and not usable.all():
            half, half_usable = polar(_halfway(current, update))
            for j in (~usable).nonzero().flatten().tolist():
                new[j], usable[j] = half[j], half_usable[j]
                turned[j] = float("inf")  # a step made small by us proves no convergence
                out.damped[active[j]] += 1
        going = []
        for j, i in enumerate(active.tolist()):
            if not usable[j]:
                out.failed[i] = True
                continue
            out.W[i], out.n_iter[i], out.limit[i] = new[j], iteration, float(turned[j])
            out.converged[i] = out.limit[i] < tol
            if not out.converged[i]:
                going.append(i)
        active = torch.tensor(going, dtype=torch.long, device=X.device)
    if len(active) > 0:
        best_visited(out.W[active], out.W[active] @ X)
        out.W[active] = best[active]
    return out


def _halfway(current: Tensor, update: Tensor) -> Tensor:
    """Go between the point we stand on and the update, its rows scaled to unit length.

    The result is not finite where the update is not: there is no direction to go.
    """
    rows = torch.nn.functional.normalize(update, dim=-1)
    return rows * torch.sign((rows * current).sum(-1, keepdim=True) + 1e-30) + current


def rescue(
    X: Tensor, start: Tensor, contrast: str, tol: float, max_iter: int, seed: int, index: int
) -> tuple[Tensor, RunReport]:
    """Redo a start that failed in the batch: in float64, then damped, then from other points."""
    X64, promoted = X.double(), X.dtype != torch.float64
    if promoted:
        batch = _iterate(X64, start[None].to(X64), contrast, tol, max_iter)
        if not batch.failed[0]:
            return batch.W[0].to(X.dtype), batch.report(0, promoted=True)
    for restart in range(_MAX_RESTARTS + 1):
        if restart:
            start = initial_unmixing(X.shape[0], seed, index, attempt=restart)
        batch = _iterate(X64, start[None].to(X64), contrast, tol, max_iter, damp=True)
        if not batch.failed[0]:
            return batch.W[0].to(X.dtype), batch.report(0, promoted=promoted, restarts=restart)
    raise DecompositionError(
        f"FastICA ({contrast}) gave no finite solution from start {index} and {_MAX_RESTARTS} "
        "other starts; use fewer components or another contrast."
    )
