"""Text that a model writes by itself, to calibrate on.

A model's own text follows the distribution it was trained on, of which no single corpus is a fair
sample (Williams et al. 2024, arXiv 2410.17170). Each window begins with a random token of the
vocabulary, as in LLM-QAT (arXiv 2305.17888): what begins with the same token everywhere stays near
what the model likes best.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from funcnet_plugin.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 64  # windows per pass


def write_windows(
    model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[list[int]]:
    """Let a model write; loads it in its own dtype and lets it go again.

    Args:
        model: checkpoint directory or hub name.
        tokenizer: its special tokens are not written, but for the first one, bos, where it has one.
        window: tokens per sample.
        samples: how many.
        seed: of the first tokens and of the sampling (temperature 1, from the whole vocabulary).

    Raises:
        CalibrationError: windows too short to write anything.
    """
    import torch
    from transformers import AutoModelForCausalLM

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if window < len(start) + 2:
        raise CalibrationError(f"a window of {window} tokens is too short for the model to write.")
    logger.info(f"the model writes {samples} windows of {window} tokens to calibrate on")
    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    if torch.cuda.is_available():
        network.cuda()
    special = sorted(set(tokenizer.all_special_ids))
    ordinary = [i for i in range(len(tokenizer)) if i not in set(special)]
    rng = random.Random(seed)
    windows: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(windows) < samples:
            n = min(_AT_ONCE, samples - len(windows))
            begin = torch.tensor([[*start, rng.choice(ordinary)] for _ in range(n)])
            begin = begin.to(network.device)
            written = network.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                suppress_tokens=special or None,
                min_new_tokens=window - begin.shape[1],
                max_new_tokens=window - begin.shape[1],
                pad_token_id=tokenizer.pad_token_id or 0,
            )
            windows += written.tolist()
    return windows
