"""Says what a model is to do while it is timed, and what was timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from funcnet_plugin.errors import FuncnetError


@dataclass(frozen=True)
class Load:
    """Says how much is read and written at once.

    Attributes:
        prompt: tokens that are read.
        written: tokens that are written behind them, the end of a text included if it comes.
        concurrency: texts at once, all alike.
    """

    prompt: int
    written: int
    concurrency: int = 1

    def __str__(self) -> str:
        at_once = f" x {self.concurrency}" if self.concurrency > 1 else ""
        return f"{self.prompt}/{self.written}{at_once}"

    @property
    def length(self) -> int:
        """Count the tokens of one text."""
        return self.prompt + self.written


STANDARD = (Load(128, 128), Load(1000, 200), Load(2048, 2048))


@dataclass(frozen=True)
class Timing:
    """Holds the seconds of one repetition.

    Attributes:
        first: until the first token of every text was written.
        rest: from there to the last token; None where the backend writes one token only.
    """

    first: float
    rest: float | None


def parse_load(text: str, concurrency: int = 1) -> Load:
    """Read PROMPT/WRITTEN.

    Raises:
        FuncnetError: it is not that.
    """
    prompt, slash, written = text.partition("/")
    if not (slash and prompt.isdecimal() and written.isdecimal()):
        raise FuncnetError(f"a length is PROMPT/WRITTEN in tokens, like 128/128, not {text!r}.")
    if int(prompt) < 1 or int(written) < 2:
        raise FuncnetError(
            f"{text} leaves nothing to time; read at least 1 token, and write at least 2."
        )
    return Load(int(prompt), int(written), concurrency)


def prompts(vocabulary: int, load: Load) -> list[list[int]]:
    """Draw the tokens that are read, the same for every model.

    Args:
        vocabulary: number of tokens.
    """
    generator = torch.Generator().manual_seed(load.prompt)
    size = (load.concurrency, load.prompt)
    return torch.randint(vocabulary, size, generator=generator).tolist()
