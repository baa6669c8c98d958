"""Writes what the reference says of commands and recipe fields from the code itself, for MkDocs.

`<!-- commands -->` in a page is replaced by a section per command, `<!-- modifiers -->` by one per
modifier: what it does, and every field with its default.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer

_PARAMETER = re.compile(r"^:param (\w+): ", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the pages that ask for it (called by MkDocs for every page)."""
    for mark, write in {"<!-- commands -->": commands, "<!-- modifiers -->": modifiers}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown


def modifiers() -> str:
    """Describe every modifier and its fields."""
    from funcnet_plugin.hosts.llmcompressor.depth_pruning import DepthPruningModifier
    from funcnet_plugin.hosts.llmcompressor.hidden_slicing import HiddenSlicingModifier
    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier

    found = (WidthPruningModifier, DepthPruningModifier, HiddenSlicingModifier)
    return "\n".join(map(_fields, found))


def _fields(modifier: Any) -> str:
    text = inspect.cleandoc(modifier.__doc__).partition("Example recipe::")[0]
    about, *described = _PARAMETER.split(text)
    pairs = zip(described[::2], described[1::2], strict=True)
    lines = [f"## {modifier.__name__}\n", about, "| field | what | default |", "|---|---|---|"]
    for name, text in pairs:
        field = modifier.model_fields[name]
        default = "required" if field.is_required() else f"`{_shown(field)}`"
        lines.append(f"| `{name}` | {_cell(text)} | {default} |")
    return "\n".join(lines) + "\n"


def _shown(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return '""' if value == "" else value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands() -> str:
    """Describe every command, in the order of `funcnet --help`."""
    from funcnet_plugin.cli import app

    group = typer.main.get_command(app)
    return "\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    arguments = [_name(p) for p in command.params if p.param_type_name == "argument"]
    lines = [
        f"## funcnet {name}\n",
        f"    funcnet {name} {' '.join(arguments)}{' ' if arguments else ''}[OPTIONS]\n",
        f"{command.help or ''}\n",
        "| | what | if not given |",
        "|---|---|---|",
    ]
    lines += [_row(parameter) for parameter in command.params if parameter.name != "help"]
    return "\n".join(lines) + "\n"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _row(parameter: Any) -> str:
    default = parameter.default
    if callable(default) or default in (None, (), [], ""):
        default = "required" if parameter.required else ""
    said = _cell(getattr(parameter, "help", None) or "")
    return f"| `{_name(parameter)}` | {said} | {default} |"
