"""Tells files apart by their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

_AT_ONCE = 2**24  # bytes


def digest_of_file(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    so_far = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE):
            so_far.update(part)
    return so_far.hexdigest()
