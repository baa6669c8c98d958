"""Reads the fields of a modifier, and says mistakes in them in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from llmcompressor.modifiers import Modifier
from pydantic import AfterValidator, ValidationError

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.plugins import one_sentence


def _expanded(place: str) -> str:
    return str(Path(place).expanduser()) if place else place


# A directory; `~` is read as a shell does, which no recipe passes through.
Place = Annotated[str, AfterValidator(_expanded)]


class PlainErrors:
    """Makes a modifier say a wrong field in one sentence."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            known = set(type(self).model_fields) - set(Modifier.model_fields)
            raise RecipeError(one_sentence(error, type(self).__name__, known)) from None
