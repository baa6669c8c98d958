"""Mistakes in the fields of a modifier, in words."""

from __future__ import annotations

from typing import Any

from llmcompressor.modifiers import Modifier
from pydantic import ValidationError

from funcnet_plugin.errors import FuncnetError, RecipeError


class PlainErrors:
    """For modifiers: a wrong field is one sentence."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RecipeError(_one_sentence(type(self), error)) from None


def _one_sentence(cls: type[Modifier], error: ValidationError) -> str:
    """pydantic's report as one sentence per mistake: field, value, what it should be."""
    problems = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        if isinstance(item.get("ctx", {}).get("error"), FuncnetError):
            problems.append(str(item["ctx"]["error"]))
        elif item["type"] == "extra_forbidden":
            known = sorted(set(cls.model_fields) - set(Modifier.model_fields))
            problems.append(f"unknown field {field!r} (known: {', '.join(known)})")
        elif item["type"] == "missing":
            problems.append(f"field {field!r} is missing")
        else:
            problems.append(f"{field}={item['input']!r}: {item['msg']}")
    return f"{cls.__name__}: {'; '.join(problems)}."
