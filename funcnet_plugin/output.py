"""Output directories: complete or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from funcnet_plugin.errors import CheckpointError


def check_output(out: Path) -> None:
    """Refuse to mix a checkpoint with other files.

    Raises:
        CheckpointError: `out` is a file, holds something, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; give a directory for the pruned model.")
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; give a new directory for the pruned model.")
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent} is not writable; give another output directory.")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` if the block ends well, and vanishes if not."""
    # Beside `out`, so that the last step is a rename on one file system.
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
