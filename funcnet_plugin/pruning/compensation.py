"""Repairing an MLP's output after its neurons were cut.

With h the inner activations (the input of down_proj), K the kept and P the pruned neurons:
bias adds ``W_P mean(h_P)`` to the output; least squares moves what P carried onto K. What can be
done behind layers that are cut: see `residual` and `reconstruction`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.pruning.processes import Processes

# These begin as least squares, and go on with the pruned model's own hidden states.
BEHIND_PRUNED_LAYERS = ("residual_least_squares", "reconstruction")
# Below that a repair was worse than none in some of the runs of docs/experiments.md.
TOKENS_PER_NEURON = 6
FEWEST_SAMPLES = 32
# Tokens that are multiplied at once; a product of few is slower, and each ends in float64.
_TOGETHER = 2048


class Moments:
    """Streamed first and second moments of inner activations, for one layer.

    Products are float32 (the activations have no more digits), their sums float64, so that a long
    calibration does not drown late samples: width^2 * 8 bytes, 1 GB at width 11008. They are on the
    CPU until the first tokens come, and then where these are: a GPU has no room for those of all
    layers. Tokens wait until there are enough for one large product.

    Attributes:
        count: tokens seen.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._total = torch.zeros(width, width, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, h: Tensor) -> None:
        """h: (n_tokens, width), any floating dtype. One call per sample: then the result does not
        depend on how samples were batched."""
        if self._sum.device != h.device:
            self._sum, self._total = self._sum.to(h.device), self._gram.to(h.device)
        self.count += h.shape[0]
        self._sum += h.sum(0, dtype=torch.float64)
        self._waiting.append(h)
        if sum(map(len, self._waiting)) >= _TOGETHER:
            self._multiply()

    def _multiply(self) -> None:
        if self._waiting:
            h = torch.cat(self._waiting).float()
            self._waiting = []
            self._total += h.T @ h

    @property
    def _gram(self) -> Tensor:
        self._multiply()
        return self._total

    def state(self) -> dict[str, Tensor]:
        """All of it, for `load_state` of another run."""
        return {"count": torch.tensor(self.count), "sum": self._sum, "gram": self._gram}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self._sum, self._total = state["sum"], state["gram"]

    def to(self, device: torch.device | str) -> Moments:
        """The same tokens on another device."""
        moved = Moments(len(self._sum))
        moved.load_state({key: value.to(device) for key, value in self.state().items()})
        return moved

    def counted_as(self, count: int) -> Moments:
        """The same means of so many tokens: what these weigh beside others."""
        found = Moments(len(self._sum))
        factor = count / max(self.count, 1)
        found.count, found._sum, found._total = count, self._sum * factor, self._gram * factor
        return found

    def with_own_activity(self, extra: Tensor) -> Moments:
        """Of neurons that act by themselves too, besides what was seen.

        Args:
            extra: (width,), float64: what that adds to E[h_j^2]; nothing to means and correlations.
        """
        found = Moments(len(self._sum))
        found.count, found._sum = self.count, self._sum
        found._total = self._gram + torch.diag(extra.to(self._sum) * self.count)
        return found

    def merge(self, processes: Processes) -> None:
        """Take the tokens of the other processes in."""
        self.count = sum(processes.gather(self.count))
        self._sum, self._total = processes.sum(self._sum), processes.sum(self._gram)

    @property
    def mean(self) -> Tensor:
        """(width,), float64: E[h]."""
        return self._sum / max(self.count, 1)

    @property
    def second(self) -> Tensor:
        """(width, width), float64: E[h h'], not centred."""
        return self._gram / max(self.count, 1)

    @property
    def variance(self) -> Tensor:
        """(width,), float64, population variance, never negative."""
        raw = self._gram.diagonal() / max(self.count, 1) - self.mean.square()
        return raw.clamp_min(0.0)


def too_little_text(
    tokens: int, width: int, samples: int | None = None, continued: bool = True
) -> str | None:
    """A sentence where a repair has too little to learn from; None where it has enough.

    Least squares on few tokens for each neuron fit what is particular to them, and a repair behind
    pruned layers, or by gradient steps, needs many samples as well (docs/experiments.md).

    Args:
        tokens: that the repair reads.
        width: neurons that are kept.
        samples: of the tokens, where they matter.
        continued: whether the model may write more text for it.
    """
    few_tokens = tokens < TOKENS_PER_NEURON * width
    few_samples = samples is not None and samples < FEWEST_SAMPLES
    if not (few_tokens or few_samples):
        return None
    read = f"{tokens} tokens" if samples is None else f"{tokens} tokens of {samples} samples"
    enough = f"{TOKENS_PER_NEURON} tokens for each neuron ({TOKENS_PER_NEURON * width})"
    if samples is not None:
        enough += f" and {FEWEST_SAMPLES} samples"
    more = ", let the model write some (continuations)" if continued else ""
    return (
        f"the repair reads {read} for {width} kept neurons and may be worse than none: it should "
        f"have {enough}; give more samples{more}, or take compensation: none"
    )


def pruned_neurons(keep: Tensor, width: int) -> Tensor:
    """The complement of `keep` in range(width), ascending, int64."""
    mask = torch.ones(width, dtype=torch.bool, device=keep.device)
    mask[keep] = False
    return mask.nonzero().flatten()


def bias_repair(down_weight: Tensor, mean: Tensor, keep: Tensor) -> Tensor:
    """What the pruned neurons added to the output on average.

    Args:
        down_weight: (hidden, width), the original weight.
        mean: (width,), E[h].
        keep: (n_kept,), int64.

    Returns:
        (hidden,), float64.
    """
    pruned = pruned_neurons(keep, down_weight.shape[1])
    # the mean waited on the CPU; `keep` may be on the weights' device
    return down_weight[:, pruned].double() @ mean.to(down_weight.device)[pruned]


RIDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def choose_ridge(down_weight: Tensor, all_: Moments, held_out: Moments, keep: Tensor) -> float:
    """The regularisation that reproduces the output best on tokens that the fit did not see.

    Args:
        down_weight: (hidden, width), the original weight.
        all_: moments of all calibration tokens.
        held_out: of those among them that are not fitted.
        keep: (n_kept,), int64.

    Returns:
        the one of RIDGES with the smallest mean squared error of the output on the held-out tokens.

    Raises:
        CalibrationError: no tokens were held out: every ridge would look perfect.
    """
    if held_out.count == 0:
        raise CalibrationError(
            "ridge: auto holds every eighth calibration sample out and there were fewer than "
            "eight; give more samples, or a number for ridge."
        )
    n_fitted = all_.count - held_out.count
    fitted = (all_.second * all_.count - held_out.second * held_out.count) / n_fitted
    keep = keep.to(fitted.device)
    pruned = pruned_neurons(keep, len(fitted))
    W_pruned = down_weight.to(fitted.device).double()[:, pruned]
    values, axes = torch.linalg.eigh(fitted[keep][:, keep])
    projected = axes.T @ fitted[keep][:, pruned]
    scale = float(fitted.diagonal().mean())
    S = held_out.second

    def error(ridge: float) -> float:
        damping = max(ridge * scale, torch.finfo(torch.float64).tiny)
        # what stands in for the pruned: h_P is estimated by B' h_K
        B = axes @ (projected / (values.clamp_min(0.0) + damping)[:, None])
        cross = B.T @ S[keep][:, pruned]
        left = S[pruned][:, pruned] - cross - cross.T + B.T @ S[keep][:, keep] @ B
        return float(((W_pruned @ left) * W_pruned).sum())

    return min(RIDGES, key=error)


def least_squares_repair(down_weight: Tensor, second: Tensor, keep: Tensor, ridge: float) -> Tensor:
    """The down projection of the kept neurons that best reproduces the old output.

    Delta form: ``W_K + W_P S_PK (S_KK + lambda I)^-1``, lambda = ridge * mean(diag S). Only the
    pruned neurons' share is estimated, so lambda shrinks towards the plain cut (not towards zero),
    and cutting nothing changes nothing.

    Args:
        down_weight: (hidden, width), the original weight.
        second: (width, width), float64, E[h h'].
        keep: (n_kept,), int64.
        ridge: relative regularisation, > 0.

    Returns:
        (hidden, n_kept), float64.
    """
    keep = keep.to(second.device)
    pruned = pruned_neurons(keep, second.shape[0])
    W = down_weight.to(second.device).double()
    # A layer that was never active has S = 0; tiny keeps the system solvable, and the delta is 0.
    damping = max(ridge * float(second.diagonal().mean()), torch.finfo(torch.float64).tiny)
    S_KK = second[keep][:, keep]
    S_KK.diagonal().add_(damping)
    solved = torch.cholesky_solve(second[keep][:, pruned], torch.linalg.cholesky(S_KK))
    return W[:, keep] + W[:, pruned] @ solved.T
