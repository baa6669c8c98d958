"""Reads the blocks of code on the pages of the project, for the tests that check and run them.

A block without a title is run where the tests are. A title is the name of the file that the block
holds, or says what else the block needs: `title="needs vLLM"`, which readers of the site see.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# An indented block is typed into a shell; drawings stand in fences.
_BLOCK = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"\n]*)")?\n(?P<fenced>(?:.*\n)*?)```$'
    r"|(?<=\n\n)(?P<indented>(?:(?: {4}.*)?\n)+)",
    re.MULTILINE,
)
_NEEDS = "needs "


@dataclass(frozen=True)
class Block:
    """Holds one block of code.

    Attributes:
        language: as the fence says, "sh" where the block is indented.
        title: empty where there is none.
        text: what it holds, without the indent.
        line: of its page, where it begins, from 1.
    """

    language: str
    title: str
    text: str
    line: int

    @property
    def needs(self) -> str:
        """Say what it needs besides this package and a small model; empty for nothing."""
        return self.title.removeprefix(_NEEDS) if self.title.startswith(_NEEDS) else ""

    @property
    def file(self) -> str:
        """Name the file whose content it is; empty if it is none."""
        return "" if self.needs else self.title

    @property
    def commands(self) -> list[list[str]]:
        """Split a block that is typed into a shell into commands, these into words."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(text: str) -> list[Block]:
    """Find all blocks of a page, from its beginning to its end.

    Raises:
        ValueError: a fence that has another form than those that are run or say what they need.
    """
    if stray := re.search(r"^ *(?:```|~~~).*", _BLOCK.sub("", text), re.MULTILINE):
        raise ValueError(f"{stray[0]!r} begins no block; write ```LANGUAGE or add a title.")
    found = []
    for match in _BLOCK.finditer(text):
        indented = match["indented"]
        if indented is not None and not indented.strip():
            continue
        line = text.count("\n", 0, match.start()) + 1
        if indented is None:
            block = Block(match["language"], match["title"] or "", match["fenced"], line)
        else:
            block = Block("sh", "", re.sub("^ {4}", "", indented, flags=re.MULTILINE).strip(), line)
        found.append(block)
    return found
