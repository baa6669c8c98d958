"""Takes hooks off a model again, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks when the block ends.

    Args:
        handles: of hooks that are registered.
    """
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
