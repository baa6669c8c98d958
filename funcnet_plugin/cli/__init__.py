"""The `funcnet` command. Exit code 0: done; 2: a mistake that the message says how to mend.

Each command has a file of its own. It imports torch and the hosts when it runs, so that `--help` is
quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from funcnet_plugin import __version__
from funcnet_plugin.cli.atlas import atlas
from funcnet_plugin.cli.bench import bench
from funcnet_plugin.cli.compare import compare
from funcnet_plugin.cli.demo import demo
from funcnet_plugin.cli.export import export
from funcnet_plugin.cli.inspecting import inspect
from funcnet_plugin.cli.lesion import lesion
from funcnet_plugin.cli.lineage import lineage
from funcnet_plugin.cli.match import match
from funcnet_plugin.cli.prune import prune
from funcnet_plugin.cli.quiet import quieten
from funcnet_plugin.cli.report import report
from funcnet_plugin.cli.runtimes import runtimes
from funcnet_plugin.cli.tasks import tasks
from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import FuncnetError

app = typer.Typer(
    name="funcnet",
    help="Functional-network pruning of large language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
commands = (
    demo, inspect, prune, compare, atlas, lesion, match, lineage, report, export, runtimes, bench,
    tasks,
)  # fmt: skip
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show what llm-compressor and the other hosts say, too.")
]


def _quiet_unless_told(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option that all have."""

    @wraps(command)
    def run(*args: Any, verbose: bool, **options: Any) -> None:
        if not verbose:
            quieten()
        command(*args, **options)

    hints = get_type_hints(command, include_extras=True)
    known = [
        one.replace(annotation=hints[one.name]) for one in signature(command).parameters.values()
    ]
    verbose = Parameter("verbose", Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    run.__signature__ = Signature([*known, verbose])
    run.__annotations__ = hints | {"verbose": Verbose}
    return run


for command in commands:
    app.command()(_quiet_unless_told(command))


def main(arguments: list[str] | None = None, program: str = "funcnet") -> None:
    """Run the console script, and of hosts that pass a command on.

    Args:
        arguments: those of the process if None.
        program: how the user called it, for the help texts.
    """
    try:
        with saying_full():
            app(arguments, prog_name=program)
    except FuncnetError as error:
        sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold red]error:[/] {message.replace('[', chr(92) + '[')}"
    )
    return 2


def _version(value: bool) -> None:
    if value:
        print(f"funcnet {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
