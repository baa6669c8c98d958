"""Types what a page says: each command, and each piece of Python, in a process of its own.

The processes are forked from one that has imported what they will import. That takes seconds, and
most of what the pages say to a small model takes less.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

_IMPORTED = (
    "funcnet_plugin.bench",
    "funcnet_plugin.cli",
    "funcnet_plugin.export",
    "funcnet_plugin.lesioning",
    "funcnet_plugin.pruning",
    "funcnet_plugin.surveying",
    "llmcompressor",
    "lm_eval.evaluator",
)
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(list(_IMPORTED))


def type_in(program: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a program in a folder.

    Args:
        program: one of `PROGRAMS`.
        arguments: what follows it.
        folder: where it runs; packages that lie there are found.

    Raises:
        AssertionError: it failed; with all that it said.
    """
    said = folder.with_suffix(".said")
    process = _processes.Process(target=_typed, args=(program, tuple(arguments), folder, said))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{program} {arguments}\n{said.read_text()}"


def _typed(program: str, arguments: tuple[str, ...], folder: Path, said: Path) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [program, *arguments]
    warnings.filterwarnings("error", "plugin .* is skipped")  # one of the page's own
    PROGRAMS[program](*arguments)


def _funcnet(*arguments: str) -> None:
    from funcnet_plugin.cli import main

    main(list(arguments))


def _lm_eval(*_: str) -> None:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def _python(script: str) -> None:
    exec(compile(script, "a page", "exec"), {"__name__": "__main__"})


PROGRAMS: dict[str, Callable[..., None]] = {
    "funcnet": _funcnet,
    "lm_eval": _lm_eval,
    "python": _python,
}
