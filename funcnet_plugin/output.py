"""Makes output directories appear complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import CheckpointError


def check_output(out: Path) -> None:
    """Refuse to mix a checkpoint with other files.

    Raises:
        CheckpointError: `out` is a file, holds something, or cannot be written.
    """
    check_directory(out)
    if out.exists():
        _check_empty(out)


def check_directory(out: Path) -> None:
    """Refuse what is no directory to write into, and cannot become one.

    Raises:
        CheckpointError: it, or what it would lie in, is a file or cannot be written.
    """
    whole = out.resolve()
    nearest = next(p for p in (whole, *whole.parents) if p.exists())
    if not nearest.is_dir():
        where = "" if nearest == whole else f", so {out} cannot be made"
        raise CheckpointError(f"{nearest} is a file{where}; give another output directory.")
    if not os.access(nearest, os.W_OK):
        raise CheckpointError(f"{nearest} is not writable; give another output directory.")


def _check_empty(out: Path, but: Path | None = None) -> None:
    found = sorted(path.name for path in out.iterdir() if path != but)
    if found:
        interrupted = found[0].startswith(f".{out.resolve().name}-")
        mend = "an interrupted run left that, delete it" if interrupted else "give a new directory"
        raise CheckpointError(f"{out} is not empty, it holds {found[0]}; {mend}.")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Make a directory that becomes `out` if the block ends well, and vanishes if not."""
    out = out.resolve()
    # An empty directory that is there stays: it may be a mount point, or where the user is, and
    # neither can be replaced. Staging inside it keeps the last step on one file system.
    filled = out.exists()
    place = out if filled else out.parent
    with saying_full(out):
        place.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=place))
    try:
        with saying_full(out):
            yield staging
        if filled:
            _check_empty(out, but=staging)  # another run may have been quicker
            # without its config a directory is no checkpoint yet
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(out / path.name)
        else:
            staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
