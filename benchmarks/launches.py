"""Counts what finding the networks of one layer sends to a device, and how often the host waits.

No GPU is needed: the steps are those a GPU would take, run on the CPU, and the operators that torch
dispatches are counted. One is about one kernel; views are none. Where an operator of cuSOLVER runs
many kernels, or waits by itself, that is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from funcnet_plugin.ica import canica, descent, polar
from funcnet_plugin.ica.expectations import Expectations

# Operators that launch nothing.
_VIEWS = (
    "view", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "t", "permute",
    "split", "detach", "alias", "diagonal", "as_strided", "unbind", "reshape", "unsafe_view",
    "local_scalar_dense", "empty", "new_empty", "empty_like", "lift_fresh",
)  # fmt: skip


class Counts(TorchDispatchMode):
    """Counts kernels and waits of everything inside it.

    Attributes:
        kernels: operator -> how often.
        waits: what the host waited for -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.strip("_")
        if name not in _VIEWS:
            self.kernels[name] += 1
        masked = name in ("index", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or name in ("local_scalar_dense", "nonzero"):
            self.waits["boolean index" if masked else name] += 1
        return func(*args, **kwargs or {})


@contextmanager
def as_on_a_gpu() -> Iterator[Counts]:
    """Count inside a block, in which the steps are those of a GPU."""
    counts, made, tolist = Counts(), Expectations.__init__, Tensor.tolist

    def together(self: Expectations, *args: object) -> None:
        made(self, *args)
        self._together = True

    def counted(self: Tensor) -> list:
        counts.waits["tolist"] += 1  # dispatched on a GPU only
        return tolist(self)

    with ExitStack() as stack:
        stack.enter_context(patch.dict(descent._LOOK_AT, clear=True))
        stack.enter_context(patch.object(polar, "by_eigenvectors", polar.newton_schulz))
        stack.enter_context(patch.object(Expectations, "__init__", together))
        stack.enter_context(patch.object(Tensor, "tolist", counted))
        stack.enter_context(counts)
        yield counts


def launches(groups: int = 8, starts: int = 16, V: int = 1024, k: int = 64) -> dict:
    """Count for one layer of so many groups of 2000 tokens, random signals with networks in them.

    The numbers hardly depend on the size of the layer, but for the iterations that it takes.
    """
    rows = {}
    for tol in (1e-4, 1e-3):
        iterations = []
        with as_on_a_gpu() as counts:
            for group in range(groups):
                found = canica(_signals(group, V), k, n_init=starts, tol=tol)
                iterations += [run.n_iter for run in found.runs]
        rows[f"tol {tol:g}"] = {
            "kernels": counts.kernels.total(), "waits": counts.waits.total(),
            "waits_for": dict(counts.waits), "iterations": sum(iterations) / len(iterations),
        }  # fmt: skip
    return {"groups": groups, "starts": starts, "signals": V, "components": k} | rows


def _signals(seed: int, V: int, tokens: int = 2000, networks: int = 100) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, networks, V, generator=generator).clamp_min(1e-9)
    maps = (uniform[0] - 0.5).sign() * -uniform[1].log()  # Laplace
    courses = torch.randn(tokens, networks, generator=generator)
    courses *= torch.arange(1, networks + 1) ** -0.5
    return (courses @ maps + torch.randn(tokens, V, generator=generator)).bfloat16()
