"""Writes the reference of the `funcnet` commands from the commands themselves, for MkDocs.

`<!-- commands -->` in a page is replaced by a section per command: what it does, its arguments and
its options.
"""

from __future__ import annotations

from typing import Any

import typer

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the page that asks for it (called by MkDocs for every page)."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


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
    said = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("\n", " ")
    return f"| `{_name(parameter)}` | {said} | {default} |"
