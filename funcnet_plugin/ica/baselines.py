"""Decomposes signals otherwise than by ICA: what networks are compared with.

Maps of all of them are z-scored over neurons, as those of an ICA; only those of `pca` are
uncorrelated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.canica import Decomposition, standardise_maps
from funcnet_plugin.ica.decomposer import Decomposer
from funcnet_plugin.ica.runs import ICAResult, RunReport
from funcnet_plugin.ica.signals import Signals, reduce_time, whiten
from funcnet_plugin.ica.stream import TruncatedSignals
from funcnet_plugin.plugins import hookimpl

_RATE, _BATCH = 1e-3, 256  # of Adam; tokens
_DONE = RunReport(converged=True, n_iter=None, final_tolerance=None)


class PCA(Decomposer):
    """Takes principal components as networks: the reduction of CanICA without its rotation."""

    name = "pca"
    source = "principal component analysis"

    def rotate(self, white: Tensor, seed: int) -> ICAResult:
        return ICAResult(torch.eye(len(white)).to(white)[None], (_DONE,))


class Dictionary(Decomposer):
    """Finds maps that are sparse rather than independent, in the reduced and whitened signals.

    :param alpha: weight of the sum of sizes of a map's entries: larger is sparser.
    :param max_iter: passes over the neurons.
    """

    name = "dictionary"
    source = "scikit-learn, after Mairal et al. 2009, doi:10.1145/1553374.1553463"

    alpha: float = Field(default=1.0, gt=0.0)
    max_iter: int = Field(default=20, ge=1)

    def decompose(
        self, signals: Signals | TruncatedSignals, n_components: int, seed: int
    ) -> Decomposition:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        reduced, explained = reduce_time(signals, n_components)
        white = whiten(reduced)
        model = MiniBatchDictionaryLearning(
            len(white), alpha=self.alpha, max_iter=self.max_iter, fit_algorithm="cd",
            transform_algorithm="lasso_cd", transform_alpha=self.alpha, random_state=seed,
        )  # fmt: skip
        codes, run = _fitted(lambda: model.fit_transform(white.T.cpu().numpy()))
        return _decomposition(torch.from_numpy(codes.T.copy()).to(white), run, explained)


class NMF(Decomposer):
    """Factors what lies above each signal's mean into parts that are nowhere negative.

    :param max_iter: passes over the tokens.
    """

    name = "nmf"
    source = "scikit-learn, after Lee and Seung 1999, doi:10.1038/44565"

    max_iter: int = Field(default=50, ge=1)

    def decompose(
        self, signals: Signals | TruncatedSignals, n_components: int, seed: int
    ) -> Decomposition:
        from sklearn.decomposition import MiniBatchNMF

        Z = _all_of(signals, self.name)
        _check_size(Z, n_components)
        model = MiniBatchNMF(n_components, max_iter=self.max_iter, random_state=seed)
        _, run = _fitted(lambda: model.fit(Z.clamp_min(0.0).cpu().numpy()))
        maps = torch.from_numpy(model.components_).to(Z.device).double()
        return _decomposition(maps, run, _explained(Z, maps))

    def working_bytes(self, n_tokens: int, n_signals: int, n_components: int) -> int:
        return 3 * 4 * n_tokens * n_signals + self._rotation_bytes(n_signals, n_components)

    def operations(self, n_tokens: int, n_signals: int, n_components: int) -> float:
        return 8.0 * n_tokens * n_signals * n_components * self.max_iter


class Autoencoder(Decomposer):
    """Trains an autoencoder with a sparse code; the maps are the rows of its decoder.

    ``code = relu(z A + b)``, ``z' = code D``; the loss is the mean square of ``z' - z`` and
    `sparsity` times the mean of the code, the rows of D having unit length.

    :param sparsity: see above.
    :param epochs: passes over the tokens.
    """

    name = "autoencoder"
    source = "a sparse autoencoder, Cunningham et al. 2023, arXiv 2309.08600"

    sparsity: float = Field(default=0.01, ge=0.0)
    epochs: int = Field(default=30, ge=1)

    def decompose(
        self, signals: Signals | TruncatedSignals, n_components: int, seed: int
    ) -> Decomposition:
        Z = _all_of(signals, self.name)
        _check_size(Z, n_components)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            maps = self._trained(Z, n_components)
        return _decomposition(maps.double(), _DONE, _explained(Z, maps.double()))

    def _trained(self, Z: Tensor, k: int) -> Tensor:
        n_tokens, n_signals = Z.shape
        # drawn on the CPU: the same on every device
        decoder = torch.randn(k, n_signals).to(Z.device)
        decoder = nn.Parameter(nn.functional.normalize(decoder, dim=1))
        encoder = nn.Parameter(decoder.detach().T.clone())
        bias = nn.Parameter(torch.zeros(k, device=Z.device))
        optimizer = torch.optim.Adam([encoder, decoder, bias], lr=_RATE)
        for _ in range(self.epochs):
            for some in torch.randperm(n_tokens).to(Z.device).split(_BATCH):
                z = Z[some]
                code = (z @ encoder + bias).relu()
                rest = code @ nn.functional.normalize(decoder, dim=1) - z
                loss = rest.square().sum(1).mean() / n_signals + self.sparsity * code.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return decoder.detach()

    def working_bytes(self, n_tokens: int, n_signals: int, n_components: int) -> int:
        weights = 2 * 4 * n_components * n_signals
        batch = 3 * 4 * _BATCH * n_signals
        return 4 * n_tokens * n_signals + 4 * weights + batch

    def operations(self, n_tokens: int, n_signals: int, n_components: int) -> float:
        return 12.0 * n_tokens * n_signals * n_components * self.epochs


def _all_of(signals: Signals | TruncatedSignals, name: str) -> Tensor:
    """Write all signals out, (n_tokens, n_signals), float32."""
    if isinstance(signals, TruncatedSignals):
        raise DecompositionError(
            f"the decomposer {name} needs all signals in memory; raise max_memory, or take canica."
        )
    return torch.cat(list(signals.rows()))


def _check_size(Z: Tensor, n_components: int) -> None:
    if n_components > min(Z.shape):
        raise DecompositionError(
            f"n_components={n_components} does not fit signals of {Z.shape[0]} tokens x "
            f"{Z.shape[1]} neurons; it must lie between 1 and {min(Z.shape)}."
        )


def _explained(Z: Tensor, maps: Tensor) -> float:
    """Tell which share of the signals' variance the maps can express together."""
    basis = torch.linalg.qr(maps.T.double())[0].float()
    return float((Z @ basis).square().sum() / Z.square().sum())


def _decomposition(maps: Tensor, run: RunReport, explained: float) -> Decomposition:
    """Standardise maps; those that are the same everywhere are left out.

    Args:
        maps: (k, n_signals).

    Raises:
        DecompositionError: none is left, or one is not finite.
    """
    maps = maps[maps.std(1, correction=0) > 0]
    if not len(maps) or not bool(torch.isfinite(maps).all()):
        raise DecompositionError(
            "the decomposition gave no map that differs between neurons; take canica, or other "
            "parameters."
        )
    unknown = torch.full((1, len(maps)), torch.nan, device=maps.device)
    return Decomposition(standardise_maps(maps)[None], (run,), explained, unknown)


def _fitted(fit: Callable[[], Any]) -> tuple[Any, RunReport]:
    """Call what fits a model of scikit-learn; its report says whether it converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        found = fit()
    loose = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return found, RunReport(converged=not loose, n_iter=None, final_tolerance=None)


@hookimpl
def funcnet_decomposers() -> list[type[Decomposer]]:
    return [PCA, Dictionary, NMF, Autoencoder]
