"""Says how much memory is free: of the host, as far as this process may use it, and of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

_CGROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class FreeMemory:
    """Says what is free.

    Attributes:
        host: bytes of memory that this process can still have; files that the system keeps in
            memory count as free.
        swap: bytes that the system can move to the disk besides.
        gpu: bytes of the current GPU; None without one.
    """

    host: int
    swap: int = 0
    gpu: int | None = None


def free_memory() -> FreeMemory:
    """Look at what is free now."""
    if not torch.cuda.is_available():
        return _of_host()
    return replace(_of_host(), gpu=free_bytes(torch.device("cuda")))


def _of_host() -> FreeMemory:
    memory, swap = psutil.virtual_memory().available, psutil.swap_memory().free
    limit = _left_in_cgroup(_CGROUPS, _MINE)
    if limit is not None and limit < memory:
        memory, swap = limit, 0  # a container's swap is its own, and mostly none
    return FreeMemory(memory, swap)


def free_bytes(device: torch.device) -> int:
    """Count the bytes that are free where a device computes."""
    if device.type != "cuda":
        return _of_host().host
    torch.cuda.empty_cache()  # what earlier passes left is free, but does not look so
    return torch.cuda.mem_get_info(device)[0]


def _left_in_cgroup(root: Path, mine: Path) -> int | None:
    """Count what the control groups of this process leave; None where there is no limit.

    Args:
        root: where control groups are mounted.
        mine: the list of this process's own.
    """
    try:
        lines = mine.read_text().splitlines()
    except OSError:  # not Linux
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            tops, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        place = tops / path.lstrip("/")
        # a container sees its own group as the top one, and may be told the path outside
        for group in (place, *place.parents):
            if group == tops or tops in group.parents:
                left.append(_left(group, limit, used))
    known = [count for count in left if count is not None]
    return min(known, default=None)


def _left(group: Path, limit: str, used: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit():  # "max"
            return None
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        kept = sum(int(files.get(name, 0)) for name in ("active_file", "inactive_file"))
        return max(0, int(most) - int((group / used).read_text()) + kept)
    except (OSError, ValueError):  # the group is not there, or not ours to read
        return None
