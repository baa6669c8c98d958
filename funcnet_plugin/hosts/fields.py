"""Mistakes in the fields of a modifier, in words."""

from __future__ import annotations

from collections.abc import Collection
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
            known = set(type(self).model_fields) - set(Modifier.model_fields)
            raise RecipeError(one_sentence(error, known)) from None


def one_sentence(error: ValidationError, known: Collection[str] = ()) -> str:
    """pydantic's report as one sentence: the modifier, and of each mistake field, value, what it
    should be.

    Args:
        known: the fields that there are, for who misspelt one.
    """
    problems = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        if isinstance(item.get("ctx", {}).get("error"), FuncnetError):
            problems.append(str(item["ctx"]["error"]))
        elif item["type"] == "extra_forbidden":
            others = f" (known: {', '.join(sorted(known))})" if known else ""
            problems.append(f"unknown field {field!r}{others}")
        elif item["type"] == "missing":
            problems.append(f"field {field!r} is missing")
        else:
            problems.append(f"{field}={item['input']!r}: {item['msg']}")
    return f"{error.title}: {'; '.join(problems)}."
