"""Runs a whole model inside llm-compressor's calibration.

There a model has no head, because its logits are not needed: what should give them works on the
meta device. And its attention is eager, which keeps all scores for a backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from compressed_tensors.utils import patch_attr
from llmcompressor.utils import eval_context
from torch import nn

_ATTENTION = "_attn_implementation"


class AsItCame:
    """Remembers how a model computes before it is calibrated.

    Args:
        model: before llm-compressor prepares it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        find = getattr(model, "get_output_embeddings", None)
        self._head = None if find is None else find()
        # offloading may have put one there
        self._forward: Any = None if self._head is None else self._head.forward
        self._attention = getattr(getattr(model, "config", None), _ATTENTION, None)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Have it compute so meanwhile."""
        with ExitStack() as stack:
            stack.enter_context(eval_context(self._model))
            if self._head is not None:
                stack.enter_context(patch_attr(self._head, "forward", self._forward))
            if self._attention is not None:
                stack.enter_context(patch_attr(self._model.config, _ATTENTION, self._attention))
            yield
