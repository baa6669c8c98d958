"""Fits all projections of an MLP together, not the down projection alone.

Least squares move what was cut onto what the kept neurons happen to compute. Here the kept neurons
may change as well: gate, up and down projection are fitted together, so that the MLP gives, for
what reaches it in the pruned model, what its layer needs to be like the dense one. This is the
layer-wise reconstruction that rounding is repaired with (AdaRound, Nagel et al. 2020, arXiv
2004.10568; BRECQ, Li et al. 2021, arXiv 2102.05426): the squared error of hidden states, gradient
steps in one MLP only, no labels and no pass backward through the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.adapters import TokenwiseUnit
from funcnet_plugin.bars import bar
from funcnet_plugin.errors import NumbersError
from funcnet_plugin.measure.free_memory import free_bytes
from funcnet_plugin.measure.processes import Processes

_TOKENS = 2048  # of one step, all processes together ...
_STEPS = 32  # ... or fewer, so that an epoch has so many steps ...
_FEWEST = 32  # ... of at least so many tokens
_HELD_OUT = 8  # every eighth sample is not fitted, and says whether the fit is any good
_WARMUP = 20  # steps
_COPIES = 4  # of the weights that a fit needs: they, their gradients, two moments of these
_NOTHING = 1e-5  # error as a share of the target: what rounding to half precision leaves
# Adam moves every weight by this share of what its matrix's entries are typically, over the root of
# its inputs (so that outputs move alike in MLPs of all sizes, Yang et al. 2022, arXiv 2203.03466).
_RATE = 0.3


@dataclass(frozen=True)
class Examples:
    """Holds what a unit is to give, for some tokens, on any device.

    Attributes:
        x: (n_tokens, hidden), what enters the MLP in the pruned model, any floating dtype.
        target: (n_tokens, hidden), what it should give.
        sample: (n_tokens,), int64, the sample that each token is of.
        weight: what each token counts.
    """

    x: Tensor
    target: Tensor
    sample: Tensor
    weight: float


@dataclass(frozen=True)
class Fit:
    """Holds the projections of a unit after the fit.

    Attributes:
        weights: those of the unit's projections as (out, in), float32; as they were where the fit
            did not help.
        error, error_before: mean squared error on the samples that were not fitted, as a share of
            the mean square of the targets.
    """

    weights: list[Tensor]
    error: float
    error_before: float


def fit_weights(
    unit: TokenwiseUnit,
    examples: Sequence[Examples],
    *,
    epochs: int,
    seed: int,
    processes: Processes | None = None,
) -> Fit:
    """Fit the projections of a cut unit; the unit itself is not changed.

    Args:
        examples: of all text, in any pieces.
        epochs: passes over them.
        seed: of the order of tokens.
        processes: others that hold other examples of the same MLP; all get the same weights.
    """
    first = [weight.detach().float().clone() for weight in unit.weights]
    fit = _COPIES * sum(w.numel() * w.element_size() for w in first)
    data = _Tokens(examples, unit.device, fit, processes)
    weights = [weight.clone().requires_grad_() for weight in first]
    rates = [_RATE * float(w.square().mean().sqrt()) / math.sqrt(w.shape[1]) for w in first]
    optimizer = torch.optim.Adam(
        [{"params": [w], "lr": rate} for w, rate in zip(weights, rates, strict=True)],
        betas=(0.9, 0.99),
        eps=1e-15,  # gradients may be small: what a token counts is a share of the whole
    )
    n_steps = epochs * data.steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: min(1.0, (n + 1) / _WARMUP) * 0.5 * (1.0 + math.cos(math.pi * n / n_steps)),
    )
    before = data.error(unit, first)
    if not math.isfinite(before):  # the targets, in half precision
        raise NumbersError(
            f"layer {unit.index}: what {unit.name} should give is NaN or infinite in "
            f"{str(unit.dtype).removeprefix('torch.')}; load the model in bfloat16 or "
            "float32, or take repair: least_squares."
        )
    if before < _NOTHING:
        return Fit(first, before, before)
    generator = torch.Generator().manual_seed(seed)
    for _ in bar(range(epochs), "reconstructing a layer", "epoch", within=True):
        for tokens in data.shuffled(generator):
            with torch.enable_grad():
                gradients = torch.autograd.grad(data.loss(unit, weights, tokens), weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient if processes is None else processes.sum(gradient)
            optimizer.step()
            schedule.step()
    found = [weight.detach() for weight in weights]
    after = data.error(unit, found)
    if after < before:
        return Fit(found, after, before)
    return Fit(first, before, before)  # also where the fit ran away to NaN


def fit_bytes(weights: int, width: int, hidden: int) -> int:
    """Count the bytes that `fit_weights` takes, the examples left out.

    Args:
        weights: numbers in all projections.
        width, hidden: of the unit.
    """
    of_step = 4 * _TOKENS * (5 * width + 4 * hidden)  # what its backward pass keeps
    return 4 * weights * (_COPIES + 2) + of_step


class _Tokens:
    """Keeps the examples of one process, those of some samples held out.

    Args:
        device: of the fit.
        besides: bytes that it needs there.
    """

    def __init__(
        self,
        examples: Sequence[Examples],
        device: torch.device,
        besides: int,
        processes: Processes | None,
    ) -> None:
        self._device, self._processes = device, processes
        place = _place(examples, device, besides)
        self._x = torch.cat([e.x.to(place) for e in examples])
        self._target = torch.cat([e.target.to(place) for e in examples])
        weight = torch.cat([torch.full((len(e.x),), float(e.weight)) for e in examples])
        self._weight = weight.to(place)
        held_out = torch.cat([e.sample.cpu() % _HELD_OUT == _HELD_OUT - 1 for e in examples])
        self._fitted = (~held_out).nonzero().flatten()
        # with fewer samples than that, those that are fitted judge
        any_held_out = float(self._sum(held_out.sum().double())) > 0
        self._judging = held_out.nonzero().flatten() if any_held_out else self._fitted
        total = int(self._sum(torch.tensor(len(self._fitted))))
        at_once = min(_TOKENS, max(_FEWEST, total // _STEPS))
        self.steps_per_epoch = math.ceil(total / at_once)
        # every process takes its part in every step; one with fewer tokens begins anew
        self._at_once = max(1, at_once // (1 if processes is None else processes.count))

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Give the positions of all tokens that are fitted, in parts."""
        order = self._fitted[torch.randperm(len(self._fitted), generator=generator)]
        parts = order.to(self._x.device).split(self._at_once)
        for step in range(self.steps_per_epoch):
            yield parts[step % len(parts)]

    def loss(self, unit: TokenwiseUnit, weights: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Compute the squared error on some tokens, by what they count."""
        x, target, weight = self._on_device(tokens)
        return (weight * (_fast_output(unit, weights, x) - target).square().mean(1)).mean()

    @torch.no_grad()
    def error(self, unit: TokenwiseUnit, weights: Sequence[Tensor]) -> float:
        """Compute `Fit.error`."""
        sums = torch.zeros(2, dtype=torch.float64)
        for tokens in self._judging.to(self._x.device).split(self._at_once):
            x, target, weight = self._on_device(tokens)
            missing = _fast_output(unit, weights, x) - target
            sums += torch.stack(
                [(weight * t.square().mean(1)).sum() for t in (missing, target)]
            ).cpu()
        missing, asked = self._sum(sums)
        return float(missing / asked.clamp_min(torch.finfo(asked.dtype).tiny))

    def _on_device(self, tokens: Tensor) -> tuple[Tensor, ...]:
        found = (self._x[tokens], self._target[tokens], self._weight[tokens])
        return tuple(t.to(self._device).float() for t in found)

    def _sum(self, tensor: Tensor) -> Tensor:
        return tensor if self._processes is None else self._processes.sum(tensor)


def _place(examples: Sequence[Examples], device: torch.device, besides: int) -> torch.device:
    """Say where examples lie: on the GPU of the fit, if they fit there twice.

    Fetched part by part they would hold up every step.
    """
    held = sum(t.numel() * t.element_size() for e in examples for t in (e.x, e.target))
    if device.type == "cuda" and 2 * held + besides < free_bytes(device):
        return device
    return torch.device("cpu")


def _fast_output(unit: TokenwiseUnit, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Compute the unit's output, float32; on a GPU in half precision if the model is."""
    half = x.is_cuda and unit.dtype != torch.float32
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        return unit.compute(weights, x).float()
