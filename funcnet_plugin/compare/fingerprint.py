"""What makes two comparisons, or two texts, the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin import __version__
from funcnet_plugin.compare.digest import digest
from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.digests import digest_of_file
from funcnet_plugin.evaluation.task_files import digest_of_tasks
from funcnet_plugin.text.sources import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fingerprint(
    plan: Comparison, window: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Digest everything that all rows of a plan share.

    Args:
        window: tokens per window, as the model can take them.
        tokenizer: of the model, see `text.sources.load_texts`.
    """
    facts = [
        __version__, str(plan.model), _digest_of_files(Path(plan.model)), window, plan.windows,
        {_digest_of(s, plan.text_column, tokenizer): share for s, share in plan.data.items()},
        {name: _digest_of(s, plan.text_column, tokenizer) for name, s in plan.texts.items()},
        list(plan.tasks), plan.limit,
    ]  # fmt: skip
    if plan.tasks and plan.include_path is not None:
        facts.append(digest_of_tasks(Path(plan.include_path)))
    return digest(json.dumps(facts, sort_keys=True))


def _digest_of_files(model: Path) -> list[str]:
    """Digest config and weights of a checkpoint directory; nothing of a hub name."""
    patterns = ("config.json", "*.safetensors", "*.bin")
    return [digest_of_file(path) for pattern in patterns for path in sorted(model.glob(pattern))]


def _digest_of(source: str, column: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    return digest(json.dumps(load_texts(source, column, tokenizer)))


def warn_of_overlap(plan: Comparison, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of a text that is measured on and calibrates, too."""
    calibration = {_digest_of(source, plan.text_column, tokenizer): source for source in plan.data}
    for name, source in plan.texts.items():
        if _digest_of(source, plan.text_column, tokenizer) in calibration:
            warnings.warn(
                f"{name} is measured on the text that calibrates ({source}); its perplexity says "
                "nothing about text that was not seen.",
                stacklevel=3,
            )
