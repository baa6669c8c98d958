"""The call of `oneshot` that is going on: where its model goes, and what is due at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, eq=False)
class Call:
    """Holds what a call of `oneshot` says beside its recipe, and what is to be done at its end.

    Attributes:
        output_dir: where the model will be saved; None where it will not.
        tokenizer: saved beside the model; None where there is none.
        chooses_batches: whether it leaves to us how many samples are read at once.
    """

    output_dir: Path | None
    tokenizer: Any
    chooses_batches: bool = False
    _ends: ExitStack = field(default_factory=ExitStack)

    def when_it_ends(self, restore: Callable[[], None]) -> None:
        """Have something called when the modifiers are through, or one of them has failed."""
        self._ends.callback(restore)


_running: list[Call] = []  # the last is the innermost; llm-compressor's session is global as well


@contextmanager
def going_on(call: Call) -> Iterator[None]:
    """Make a call the one that is going on, and do at its end what is to be done then."""
    _running.append(call)
    try:
        yield
    finally:
        _running.pop()
        call._ends.close()


def running() -> Call | None:
    """Give the call of `oneshot` that is going on; None where a session is driven by hand."""
    return _running[-1] if _running else None
