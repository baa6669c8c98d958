"""Lets transformers' `GlmForCausalLM` read and write the original tensor names."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.models.glm.modeling_glm import GlmForCausalLM

from funcnet_plugin.models.chatglm.configuration import ChatGLMConfig

_RENAMED = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.encoder.layers": "model.layers",
    "transformer.output_layer": "lm_head",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
_FUSED = "self_attention.query_key_value"
_SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class SplitQueryKeyValue(ConversionOps):
    """Splits query_key_value, rows `[heads * d, groups * d, groups * d]`, in three projections."""

    def convert(self, input_dict: dict[str, Any], config: ChatGLMConfig, **_: Any) -> dict:
        (fused,) = input_dict.values()
        rows = [n * config.head_dim for n in _heads(config)]
        return dict(zip(_SPLIT, _tensor(fused).split(rows), strict=True))

    @property
    def reverse_op(self) -> ConversionOps:
        return JoinQueryKeyValue()


class JoinQueryKeyValue(ConversionOps):
    """Joins the three projections again."""

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        return {_FUSED: torch.cat([_tensor(input_dict[name]) for name in _SPLIT])}

    @property
    def reverse_op(self) -> ConversionOps:
        return SplitQueryKeyValue()


def _heads(config: ChatGLMConfig) -> tuple[int, int, int]:
    return config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads


def _tensor(value: Tensor | list[Tensor]) -> Tensor:
    return value[0] if isinstance(value, list) else value


def register_conversion() -> None:
    """Register both directions: transformers reverses the mapping when it saves."""
    register_checkpoint_conversion_mapping(
        ChatGLMConfig.model_type,
        [
            *(WeightRenaming(original, native) for original, native in _RENAMED.items()),
            WeightConverter(_FUSED, list(_SPLIT), operations=[SplitQueryKeyValue()]),
        ],
        overwrite=True,
    )


class ChatGLMForCausalLM(GlmForCausalLM):
    """Is `GlmForCausalLM` with a config and checkpoints in the original format."""

    config_class = ChatGLMConfig
    _keys_to_ignore_on_load_unexpected = (r"rotary_pos_emb\.inv_freq",)

    # Transformers keeps the mapping of a loaded model here, and looks it up again where there is
    # none. compressed-tensors would translate the names in a quantization config by it, but what is
    # quantized is saved under the native names.
    _weight_conversions = property(lambda self: None, lambda self, value: None)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save in the original format, but a quantized model as `glm`.

        Scales and packed weights of three projections cannot be joined into one.
        """
        if any(hasattr(module, "quantization_scheme") for module in self.modules()):
            become_glm(self)
        GlmForCausalLM.save_pretrained(self, save_directory, *args, **kwargs)


def become_glm(model: ChatGLMForCausalLM) -> GlmForCausalLM:
    """Turn a model into transformers' own class, in place: same modules, same weights."""
    config = model.config.to_glm()
    for module in model.modules():
        if getattr(module, "config", None) is not None:
            module.config = config
    model.__class__ = GlmForCausalLM
    return model
