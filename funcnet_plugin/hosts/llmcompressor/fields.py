"""Says mistakes in the fields of a modifier in words."""

from __future__ import annotations

from typing import Any

from llmcompressor.modifiers import Modifier
from pydantic import ValidationError

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.plugins import one_sentence


class PlainErrors:
    """Makes a modifier say a wrong field in one sentence."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            known = set(type(self).model_fields) - set(Modifier.model_fields)
            raise RecipeError(one_sentence(error, type(self).__name__, known)) from None
