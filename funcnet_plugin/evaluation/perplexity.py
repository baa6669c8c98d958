"""Measures the token perplexity of a checkpoint on windows of text.

Convention: documents are tokenised as the tokenizer does it for the model, joined, and cut into
windows; the perplexity is exp of the mean negative log-likelihood of all tokens but the first of
each window.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from funcnet_plugin.bars import bar
from funcnet_plugin.errors import CalibrationError, NumbersError
from funcnet_plugin.measure.offloading import device_of
from funcnet_plugin.measure.passes import on_gpu
from funcnet_plugin.measure.token_loss import token_loss
from funcnet_plugin.text.ids import token_ids
from funcnet_plugin.text.sources import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens of a batch, and what it may have in logits: large vocabularies would take gigabytes.
_BATCH_TOKENS, _BATCH_LOGITS = 4096, 2**28


@dataclass(frozen=True)
class Perplexities:
    """Holds perplexities.

    Attributes:
        by_text: name -> perplexity.
        tokens_per_second: of the forward passes that gave them.
    """

    by_text: dict[str, float]
    tokens_per_second: float


def text_windows(
    source: str | Path, column: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int
) -> Tensor:
    """Cut the first `count` windows of a text, in order: (n, length), int64.

    Raises:
        CalibrationError: the text does not fill one window.
    """
    if length < 2:
        raise CalibrationError(
            f"a window of {length} tokens has nothing to predict; give windows of 2 and more."
        )
    texts = load_texts(source, column, tokenizer)
    wanted = chain.from_iterable(token_ids(texts, tokenizer))
    tokens = list(islice(wanted, count * length))
    count = len(tokens) // length
    if count == 0:
        raise CalibrationError(
            f"{source} has {len(tokens)} tokens and one window needs {length}; give more text or a "
            "shorter window."
        )
    return torch.tensor(tokens[: count * length]).view(count, length)


def perplexities(checkpoint: str | Path, texts: dict[str, Tensor]) -> Perplexities:
    """Load a checkpoint in float32 and measure it on each text.

    Args:
        checkpoint: directory or hub name.
        texts: name -> windows, see `text_windows`.

    Raises:
        NumbersError: the checkpoint predicts NaN.
        FuncnetError: files and config disagree, or a text has tokens that the model does not.
    """
    from transformers import AutoModelForCausalLM

    from funcnet_plugin.checkpoints.loading import read_model_config
    from funcnet_plugin.checkpoints.weights import check_weights
    from funcnet_plugin.text.windows import check_ids

    check_weights(checkpoint, read_model_config(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=False
    ).eval()
    for windows in texts.values():
        check_ids(windows.tolist(), model)
    found = {}
    with on_gpu(model):
        for windows in list(texts.values())[:1]:
            perplexity(model, windows[:1], "")  # the first pass loads what the others need
        start = time.perf_counter()
        for name, windows in texts.items():
            found[name] = perplexity(model, windows, name)
            if math.isnan(found[name]):
                raise NumbersError(
                    f"{checkpoint} predicts NaN on the text {name}, in float32; it has no "
                    "perplexity, so take a sound checkpoint."
                )
        seconds = time.perf_counter() - start
    n_tokens = sum(windows[:, 1:].numel() for windows in texts.values())
    return Perplexities(found, n_tokens / seconds)


@torch.no_grad()
def perplexity(model: PreTrainedModel, windows: Tensor, name: str) -> float:
    """Measure a model in memory, in its own dtype; losses are float32.

    Args:
        windows: see `text_windows`.
        name: of the text, for the bar; none without.

    Returns:
        NaN where a prediction is.
    """
    total = 0.0
    vocabulary = model.config.get_text_config().vocab_size
    tokens = min(_BATCH_TOKENS, _BATCH_LOGITS // vocabulary)
    batches = windows.split(max(1, tokens // windows.shape[1]))
    for batch in bar(batches, name and f"perplexity of {name}", within=True):
        batch = batch.to(device_of(model))
        logits = model(batch[:, :-1]).logits.flatten(0, 1)
        total += float(token_loss(logits, batch[:, 1:].flatten().to(logits.device)))
    if math.isnan(total):
        return math.nan
    return math.exp(min(total / windows[:, 1:].numel(), 700.0))  # the largest that is a number
