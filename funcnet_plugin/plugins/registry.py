"""Keeps all parts of one kind, by name: ours and those that other packages bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType, ModuleType
from typing import Any, Generic, TypeVar

import pluggy
from pydantic import ValidationError

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.plugins.hooks import PROJECT, is_ours, load_plugins, warn_skipped
from funcnet_plugin.plugins.part import Part, one_sentence

P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class FoundPart(Generic[P]):
    """Says where a part is from.

    Attributes:
        part: its class.
        package: that brought it, with the entry point's name if it is not ours.
    """

    part: type[P]
    package: str


class Registry(Generic[P]):
    """Finds the parts of one kind and makes those that a recipe names.

    Packages bring parts through the hook `funcnet_<kind>s`, in a module that they name in the
    entry-point group `funcnet_plugin.<kind>s`.

    Args:
        kind: "scorer", for instance.
        base: the class that parts derive from.
        spec: object with the hook's specification.
        builtin: our own modules with the hook.
        problem: says what is wrong with a part's class, None if nothing is.
        gone: name of a part that we had -> why it went, and what to take.
    """

    def __init__(
        self,
        kind: str,
        base: type[P],
        spec: Any,
        builtin: Sequence[ModuleType],
        problem: Callable[[type[P]], str | None] = lambda part: None,
        gone: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._kind, self._base, self._problem, self._gone = kind, base, problem, gone
        self._spec, self._builtin = spec, builtin
        self.group = f"funcnet_plugin.{kind}s"

    @cached_property
    def manager(self) -> pluggy.PluginManager:
        """Hold the plugins, loaded when they are first asked for."""
        return load_plugins(self.group, self._spec, self._builtin)

    def all(self) -> dict[str, type[P]]:
        """Give name -> class of every part that there is; raises as `find` does."""
        return {name: found.part for name, found in self.find().items()}

    def find(self) -> dict[str, FoundPart[P]]:
        """Ask all packages for their parts, and give them by name.

        Raises:
            RecipeError: a plugin brings something else than a part, two bring one of the same
                name, or a part cannot work.
        """
        found: dict[str, FoundPart[P]] = {}
        for hook in getattr(self.manager.hook, f"funcnet_{self._kind}s").get_hookimpls():
            try:
                brought = hook.function()
            except Exception as error:
                # as in `load_plugins`: the user keeps everything else and the reason
                warn_skipped(hook.plugin_name, error)
                continue
            source = hook.plugin_name
            package = PROJECT if is_ours(source) else source
            # a part that was made already can be gone through, too: pydantic gives its fields
            several = isinstance(brought, Iterable) and not isinstance(brought, Part)
            for part in brought if several else [brought]:
                is_part = isinstance(part, type) and issubclass(part, self._base)
                if not is_part or not isinstance(getattr(part, "name", None), str):
                    raise RecipeError(
                        f"{source} brings {part!r}, which is not a class of "
                        f"{self._base.__name__} with a name; uninstall it, or correct it."
                    )
                if part.name in found:
                    raise RecipeError(
                        f"{found[part.name].package} and {source} both bring a {self._kind} called "
                        f"{part.name!r}; uninstall one of them, or give one another name."
                    )
                problem = part.lacks() or self._problem(part)
                if problem is not None:
                    raise RecipeError(f"{source}: the {self._kind} {part.name} {problem}.")
                found[part.name] = FoundPart(part, package)
        return found

    def make(self, given: str | Mapping[str, Any] | Part) -> P:
        """Make the part that a recipe names.

        Args:
            given: a name, or a mapping with `name` and parameters.

        Raises:
            RecipeError: there is no such part, or it has no such parameter or value.
        """
        if isinstance(given, Part):
            return given
        if isinstance(given, str):
            given = {"name": given}
        name = given.get("name") if isinstance(given, Mapping) else None
        known = self.all()
        if not isinstance(name, str):
            raise RecipeError(
                f"{self._kind}: {given!r} names none; write one of {', '.join(known)}, or "
                "{name: ..., and its parameters}."
            )
        if name not in known and name in self._gone:
            raise RecipeError(f"the {self._kind} {name} is gone: {self._gone[name]}.")
        if name not in known:
            raise RecipeError(
                f"there is no {self._kind} {name!r}; choose one of {', '.join(known)}, or install "
                "a package that brings it."
            )
        part = known[name]
        parameters = {str(key): value for key, value in given.items() if key != "name"}
        for parameter in parameters:
            if parameter not in part.model_fields:
                raise RecipeError(self._no_parameter(part, parameter, known))
        try:
            return part(**parameters)
        except ValidationError as error:
            raise RecipeError(one_sentence(error, f"{self._kind} {name}")) from None

    def _no_parameter(self, part: type[P], parameter: str, known: Mapping[str, type[P]]) -> str:
        others = [name for name, other in known.items() if parameter in other.model_fields]
        belongs = f"; it belongs to {', '.join(others)}" if others else ""
        has = part.parameters()
        listed = f"it has {', '.join(has)}" if has else "it has none"
        return (
            f"the {self._kind} {part.name} has no parameter {parameter!r} ({listed}){belongs}; "
            "leave it out."
        )
