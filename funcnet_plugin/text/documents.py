"""Names the documents of a text: each is a record of the data, or a file of text."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """Holds one document, and where it stands in the data.

    Attributes:
        text: of it.
        source: the file or dataset; None where that is not known.
        record: its number there, the first being 1; None for a file that is one document.
        title: the record's own `title`, or else its `id`; None where it has neither.
    """

    text: str
    source: str | None = None
    record: int | None = None
    title: str | None = None
