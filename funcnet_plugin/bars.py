"""Shows bars for whatever takes more than some seconds, with the time that is left.

They look and are switched off (TQDM_DISABLE=1) like those of llm-compressor and transformers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_PATIENCE = 2.0  # seconds before a stretch of work without steps is shown


def bar(
    items: Iterable[T], title: str, unit: str = "batch", *, within: bool = False
) -> Iterable[T]:
    """Pass items on, while a bar says how many of them are done.

    Args:
        title: what is done with them; without one there is no bar.
        unit: what an item is.
        within: another bar is there meanwhile; this one vanishes when it is done.
    """
    if not title:
        return items
    total = _length(items)
    return tqdm(items, desc=title, unit=unit, total=total, leave=not within, dynamic_ncols=True)


def counter(total: int, title: str, unit: str) -> tqdm:
    """Make a bar to `update` by hand, as a context."""
    return tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True)


@contextmanager
def ticking(title: str) -> Iterator[None]:
    """Show how long work takes that has no steps to count; the line vanishes when it is done.

    Nothing is shown of what takes less than two seconds.

    Args:
        title: what is done.
    """
    over = threading.Event()
    shown = threading.Thread(target=_tick, args=(title, over), daemon=True)
    shown.start()
    try:
        yield
    finally:
        over.set()
        shown.join()


def _tick(title: str, over: threading.Event) -> None:
    if over.wait(_PATIENCE):
        return
    line = "{desc} ({elapsed})"
    with tqdm(desc=title, bar_format=line, leave=False, dynamic_ncols=True) as clock:
        if clock.disable:
            return
        clock.start_t -= _PATIENCE
        clock.refresh()
        while not over.wait(1.0):
            clock.refresh()


def _length(items: Iterable[object]) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a loader over an iterable dataset
        return None
