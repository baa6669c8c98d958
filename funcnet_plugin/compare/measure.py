"""What is measured of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from funcnet_plugin.evaluation.lm_eval_tasks import Tasks
from funcnet_plugin.evaluation.perplexity import perplexities


def measure(checkpoint: str | Path, texts: Mapping[str, Tensor], tasks: Tasks) -> dict:
    """Measure perplexity of each text, the tasks' scores, and speed."""
    found = perplexities(checkpoint, dict(texts))
    return {
        "perplexity": found.by_text,
        "tasks": tasks.scores(checkpoint),
        "tokens_per_second": found.tokens_per_second,
    }
