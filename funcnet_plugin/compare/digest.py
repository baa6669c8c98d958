"""Shortens texts to names."""

from __future__ import annotations

import hashlib


def digest(text: str) -> str:
    """Shorten a text to a name that no other text has."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
