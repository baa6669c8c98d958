"""Writes a ChatGLM in the format of transformers' own `glm`: stock transformers reads it."""

from __future__ import annotations

from pathlib import Path

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.export.files import copy_side_files, load_full_precision, save
from funcnet_plugin.models.chatglm.modeling import ChatGLMForCausalLM, become_glm
from funcnet_plugin.models.chatglm.tokenization import ChatGLMTokenizer


def export(source: Path, out: Path) -> None:
    """Write a ChatGLM checkpoint under the native names.

    Args:
        source: a checkpoint directory in ChatGLM's original format.
        out: an existing, empty directory.

    Raises:
        CheckpointError: another architecture, or quantized (that is saved as glm anyway).
    """
    model = load_full_precision(source)
    if not isinstance(model, ChatGLMForCausalLM):
        raise CheckpointError(
            f"{source} is a {type(model).__name__}; only a ChatGLM has another format to leave."
        )
    save(become_glm(model), out)
    if (source / "tokenizer.model").exists():
        ChatGLMTokenizer.from_pretrained(source).save_pretrained(out)
    copy_side_files(source, out)
