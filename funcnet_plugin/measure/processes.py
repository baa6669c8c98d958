"""Lets several processes share the calibration samples, as whole groups.

Every process calibrates on groups of its own; statistics are merged before a layer is scored, so
all of them come to the same decision, and the first one's is used by all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Speaks to the processes of `torch.distributed`, which must be initialised."""

    rank: int
    count: int

    @classmethod
    def current(cls) -> Processes:
        """Say which of how many processes this one is."""
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up over all processes, on the device that `tensor` is on."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Take the maximum over all processes, element by element."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def gather(self, value: Any) -> list[Any]:
        """Bring together the plain values of all processes, by rank."""
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def total(self, count: int) -> int:
        """Add up a count over all processes."""
        return sum(self.gather(count))

    def from_first(self, tensor: Tensor) -> Tensor:
        """Take over the first process's tensor; all must have the same shape and dtype."""
        moved = self._on_backend(tensor)
        dist.broadcast(moved, src=0)
        return moved.to(tensor.device)

    def my_samples(self, n_samples: int, samples_per_group: int) -> list[int]:
        """List the positions, in calibration order, of the samples of this process.

        Groups go around; samples that do not fill one go to the last process.
        """
        n_groups = n_samples // samples_per_group
        mine = [
            position
            for group in range(self.rank, n_groups, self.count)
            for position in range(group * samples_per_group, (group + 1) * samples_per_group)
        ]
        if self.rank == self.count - 1:
            mine += range(n_groups * samples_per_group, n_samples)
        return mine

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        moved = self._on_backend(tensor).clone()
        dist.all_reduce(moved, operation)
        return moved.to(tensor.device)

    def _on_backend(self, tensor: Tensor) -> Tensor:
        cuda = dist.get_backend() == "nccl"
        return tensor.contiguous().to(torch.device("cuda") if cuda else torch.device("cpu"))
