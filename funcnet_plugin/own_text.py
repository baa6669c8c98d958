"""Text that a model writes by itself, to calibrate on.

A model's own text follows the distribution it was trained on, of which no single corpus is a fair
sample (Williams et al. 2024, arXiv 2410.17170). Windows of other calibration text are cut out of
the middle of documents, and so do these begin: with a random token of the vocabulary (as in
LLM-QAT, arXiv 2305.17888) and nothing before it. After a beginning-of-sequence token a model writes
what documents begin with, and long ones, which begin rarely, are hardly ever written.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from funcnet_plugin.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AT_ONCE = 64  # windows per pass
# At 1 the tail of every distribution gets in, mistake upon mistake, which no other text is like.
_TEMPERATURE = 0.8


def write_windows(
    model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    samples: int,
    seed: int,
) -> list[list[int]]:
    """`write`, by a checkpoint: loads it in its own dtype and lets it go again.

    Args:
        model: checkpoint directory or hub name.
        tokenizer: its special tokens are not written.
    """
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    if torch.cuda.is_available():
        network.cuda()
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    return write(network, ordinary, window=window, samples=samples, seed=seed)


def write(
    network: PreTrainedModel, ordinary: Collection[int], *, window: int, samples: int, seed: int
) -> list[list[int]]:
    """Let a model write.

    Args:
        network: in memory.
        ordinary: the tokens that may be written.
        window: tokens per sample.
        samples: how many.
        seed: of the first tokens and of the sampling, from the whole vocabulary.

    Raises:
        CalibrationError: windows too short to write anything.
    """
    import torch

    if window < 2:
        raise CalibrationError(f"a window of {window} tokens is too short for the model to write.")
    logger.info(f"the model writes {samples} windows of {window} tokens to calibrate on")
    ordinary = sorted(ordinary)
    size = network.get_input_embeddings().num_embeddings
    others = sorted(set(range(size)) - set(ordinary))
    rng = random.Random(seed)
    windows: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(windows) < samples:
            n = min(_AT_ONCE, samples - len(windows))
            begin = torch.tensor([[rng.choice(ordinary)] for _ in range(n)], device=network.device)
            written = network.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                temperature=_TEMPERATURE,
                top_k=0,
                top_p=1.0,
                suppress_tokens=others or None,
                min_new_tokens=window - 1,
                max_new_tokens=window - 1,
                pad_token_id=others[0] if others else 0,  # never needed: all are equally long
            )
            windows += written.tolist()
    return windows
