"""Defines the parts of the pruning: classes that a recipe names, with their parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from funcnet_plugin.errors import FuncnetError


class Part(BaseModel):
    """Serves as the base of scorers, repairs and decomposers.

    The fields of a subclass are its parameters, with their types, bounds and defaults; a recipe
    writes them beside the name: ``{name: distillation, epochs: 2}``.

    Attributes:
        name: what a recipe calls the part.
        source: the paper it is from, for the documentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: ClassVar[str]
    source: ClassVar[str] = ""

    def settings(self) -> dict[str, Any]:
        """Give the part as a recipe writes it, defaults included; plain values."""
        return {"name": self.name, **self.model_dump()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Give its parameters that have a default, as plain values."""
        fields = {name: f for name, f in cls.model_fields.items() if not f.is_required()}
        values = {name: f.get_default(call_default_factory=True) for name, f in fields.items()}
        plain = {k: v.settings() if isinstance(v, Part) else v for k, v in values.items()}
        return to_jsonable_python(plain, fallback=str)

    @classmethod
    def parameters(cls) -> list[str]:
        """List the names of its parameters."""
        return list(cls.model_fields)

    @classmethod
    def lacks(cls) -> str | None:
        """Say which method the class should have and has not; None if it can work."""
        return None


def one_sentence(error: ValidationError, title: str, known: Collection[str] = ()) -> str:
    """Say pydantic's report as one sentence: of each mistake field, value, what it should be.

    Args:
        error: of a modifier or a part.
        title: what was given these fields.
        known: the fields that there are, for who misspelt one.
    """
    problems = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        if isinstance(item.get("ctx", {}).get("error"), FuncnetError):
            problems.append(str(item["ctx"]["error"]).rstrip("."))
        elif item["type"] == "extra_forbidden":
            others = f" (known: {', '.join(sorted(known))})" if known else ""
            problems.append(f"unknown field {field!r}{others}")
        elif item["type"] == "missing":
            problems.append(f"field {field!r} is missing")
        else:
            problems.append(f"{field}={item['input']!r}: {item['msg']}")
    return f"{title}: {'; '.join(problems)}."
