"""Keeps the hosts' chatter off the screen. What they warn of and what we say ourselves stays.

llm-compressor tells of each of its steps, and once a layer that there is no GPU; datasets shows a
bar for each file; torch warns of a name. None of it helps somebody who prunes.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

from loguru import logger
from tqdm import tqdm

from funcnet_plugin.hosts.autoload import watch

if TYPE_CHECKING:
    from loguru import Message

# The least level that is shown, by module. loguru takes the longest name that fits.
_LEVELS = {
    "": "INFO",
    "llmcompressor": "WARNING",
    "llmcompressor.utils.dev": "ERROR",  # "No accelerator available!", once a layer
    "compressed_tensors": "WARNING",
    "funcnet_plugin.run.cuts": "WARNING",  # a line for each layer, under a bar
}
_STANDARD = {"torch.fx._symbolic_trace": logging.ERROR, "lm_eval": logging.WARNING}
_LOGGER = "llmcompressor.logger"


def quieten() -> None:
    """Show only what matters, for the rest of this process.

    Does nothing where the user has said what to see (LLM_COMPRESSOR_LOG_LEVEL), or where
    llm-compressor is loaded already: its log then belongs to whoever loaded it.
    """
    if "LLM_COMPRESSOR_LOG_LEVEL" in os.environ or _LOGGER in sys.modules:
        return
    os.environ["LLM_COMPRESSOR_LOG_LEVEL"] = ""  # it adds no lines of its own to the screen
    # or llm-compressor sets it, with a warning
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name, level in _STANDARD.items():
        logging.getLogger(name).setLevel(level)
    # llm-compressor keeps what it calls offloaded in memory
    warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
    _show()
    watch(_LOGGER, _show)  # which removes whatever showed the log before


def _show(_: ModuleType | None = None) -> None:
    """Let one handler show the log."""
    logger.remove()
    logger.add(_write, format=_line, filter=_LEVELS, level=0)


def _write(message: Message) -> None:
    tqdm.write(message, file=sys.stderr, end="")  # above the bars


def _line(record: dict) -> str:
    level = "" if record["level"].name == "INFO" else f"{record['level'].name.lower()}: "
    return level + "{message}\n{exception}"
