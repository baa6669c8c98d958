"""Runs Picard-O: orthogonal ICA by preconditioned L-BFGS, several starts in one batch.

Ablin, Cardoso & Gramfort 2018, arXiv 1711.10873.

Its fixed points are those of symmetric FastICA: every component leaves the Gaussian value of the
contrast, so ``sum_i s_i E G(y_i)`` descends over the orthogonal group, s_i being the sign of
``E g'(y_i) - E g(y_i) y_i``. FastICA has no step size there and turns for hundreds of iterations on
real signals; a descent ends. Its first steps, however, are long and find better optima than a
descent from a random start does, so they come first.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from funcnet_plugin.ica.descent import descend
from funcnet_plugin.ica.expectations import Expectations
from funcnet_plugin.ica.fastica import rescue
from funcnet_plugin.ica.polar import polar
from funcnet_plugin.ica.runs import ICAResult, RunReport, check_white, starting_points

# FastICA steps that come first. With 15 the contrast reached on real signals is FastICA's own.
_LONG_STEPS = 15


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
    expect = Expectations(X.float(), contrast)
    long_steps = min(_LONG_STEPS, max_iter)
    here = _long_steps(expect, starts.to(X.device), long_steps)
    ends = descend(expect, here, tol, max_iter - long_steps)
    unmixing, usable = polar(ends.W.double())
    W, runs = [], []
    for i, (good, converged, steps, turn) in enumerate(
        zip(*(t.tolist() for t in (usable, ends.converged, ends.steps, ends.turn)), strict=True)
    ):
        if good:
            w, run = unmixing[i].to(X), RunReport(converged, long_steps + steps, turn)
        else:
            w, run = rescue(X, starts[i], contrast, tol, max_iter, seed, i)
            run = replace(run, promoted=True)  # ours is float32, whatever X is
        W.append(w)
        runs.append(run)
    return ICAResult(torch.stack(W), tuple(runs))


def _long_steps(expect: Expectations, W: Tensor, steps: int) -> Tensor:
    """Take steps of FastICA, converged or not; a start that breaks down stays where it was.

    The update ``E g(y) x' - E g'(y) W`` is ``(E g(y) y' - E g'(y)) W``, since W is a rotation; so
    the polar factor is needed of what stands before W only. It is found in float64, because the
    rows of an update differ in length like the kurtoses of their components, by 1e5 and more.

    Args:
        W: (n, k, k), float64.

    Returns:
        (n, k, k), float32, NaN for a start that was not usable.
    """
    W, usable = polar(W)
    for _ in range(steps):
        means = expect(W.float())
        turn, good = polar((means.cross - torch.diag_embed(means.slope)).double())
        W = torch.where(good[:, None, None], turn @ W, W)
    return W.masked_fill(~usable[:, None, None], torch.nan).float()
