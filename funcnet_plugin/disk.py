"""Looks for room on a disk before the work, and says in words where it runs out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from funcnet_plugin.errors import CheckpointError, FuncnetError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The words of the system, and of libraries in Rust that pass on its number alone.
_SAID = ("no space left on device", "disk quota exceeded", f"os error {errno.ENOSPC}")


def check_room(out: Path, needed: int) -> None:
    """Refuse to begin what does not fit on the disk.

    Args:
        out: directory to write, there or not.
        needed: bytes.

    Raises:
        CheckpointError: less is free.
    """
    whole = out.resolve()
    nearest = next(path for path in (whole, *whole.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise CheckpointError(
            f"the disk of {out} has {_size(free)} free and the model needs {_size(needed)}; make "
            "room, or give another output directory."
        )


@contextmanager
def saying_full(place: Path | None = None) -> Iterator[None]:
    """Say in one sentence that the disk is full; for whoever writes.

    Args:
        place: what is written, or where; None where the error itself must say.

    Raises:
        CheckpointError: it is, or a quota is used up.
    """
    try:
        yield
    except FuncnetError:
        raise
    except Exception as error:
        refuse_full_disk(error, place)
        raise


def refuse_full_disk(error: BaseException, place: Path | None = None) -> None:
    """Refuse to go on if an error is of a full disk, also one that a library has wrapped.

    Raises:
        CheckpointError: the disk was full.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        named = getattr(cause, "filename", None) if isinstance(cause, OSError) else None
        words = str(cause).lower()
        if getattr(cause, "errno", None) in _FULL or any(said in words for said in _SAID):
            where = place if place is not None else named
            raise CheckpointError(
                f"the disk is full{_left(where)}; free some space, or write to another disk."
            ) from error
        cause = cause.__cause__ or cause.__context__


def _left(place: object) -> str:
    if not isinstance(place, str | Path):
        return ""
    whole = Path(place).resolve()
    nearest = next(p for p in (whole, *whole.parents) if p.exists())
    return f", {shutil.disk_usage(nearest).free / 2**20:,.0f} MB are left where {place} is written"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
