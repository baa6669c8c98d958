"""Shows bars for whatever takes more than some seconds, with the time that is left.

They look and are switched off (TQDM_DISABLE=1) like those of llm-compressor and transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


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


def _length(items: Iterable[object]) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a loader over an iterable dataset
        return None
