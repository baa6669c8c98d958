"""Lets modelling code wait until the first config of its kind is made.

A config class is known to transformers' auto classes early, while these are being imported. The
network and the tokenizer are heavy, and for those who have such a model.
"""

from __future__ import annotations

from collections.abc import Callable

_waiting: dict[str, Callable[[], None]] = {}


def when_first_used(model_type: str, register: Callable[[], None]) -> None:
    """Remember what is to be done with the first config of a model type."""
    _waiting[model_type] = register


def used(model_type: str) -> None:
    """Do what waits for the first config of a model type, once."""
    register = _waiting.pop(model_type, None)
    if register is not None:
        register()
