"""Runs nilearn's own CanICA on the same matrix: the reference that a recipe can choose."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.canica import Decomposition, standardise_maps
from funcnet_plugin.ica.runs import RunReport
from funcnet_plugin.ica.signals import Signals, standardise
from funcnet_plugin.ica.stream import TruncatedSignals


def nilearn_canica(
    X: Tensor | Sequence[Tensor] | Signals,
    n_components: int,
    *,
    n_init: int = 10,
    seed: int = 0,
) -> Decomposition:
    """Run `nilearn.decomposition.CanICA` on raw signals, past its image masking.

    nilearn starts FastICA `n_init` times and keeps the start with the smallest L1 norm of its
    largest map, so there is one run in the result; its report says whether all starts converged.
    Contrast, tolerance and iterations are fixed inside nilearn (cube, 1e-4, 200), and so is the
    solver, scikit-learn's FastICA.

    Args and raises: as `canica`.
    """
    from nilearn.decomposition import CanICA
    from sklearn.exceptions import ConvergenceWarning

    if isinstance(X, TruncatedSignals):
        raise DecompositionError(
            "the decomposer nilearn needs all signals in memory; raise max_memory, or take canica."
        )
    signals = X if isinstance(X, Signals) else standardise(X)
    Z = torch.cat(list(signals.rows())).cpu().numpy()
    if n_components > min(Z.shape):
        raise DecompositionError(
            f"n_components={n_components} does not fit signals of {Z.shape[0]} tokens x "
            f"{Z.shape[1]} neurons; it must lie between 1 and {min(Z.shape)}."
        )
    model = CanICA(n_components=n_components, threshold=None, n_init=n_init, random_state=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model._raw_fit(Z)  # the entry nilearn gives to estimators that have unmasked already
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    maps = standardise_maps(torch.from_numpy(model.components_).to(signals.mean.device).double())
    if not torch.isfinite(maps).all():
        raise DecompositionError("nilearn's CanICA returned NaN maps; take the decomposer canica.")
    run = RunReport(converged=converged, n_iter=None, final_tolerance=None)
    unknown = torch.full((1, len(maps)), torch.nan, device=maps.device)
    return Decomposition(maps.unsqueeze(0), (run,), float("nan"), unknown)
