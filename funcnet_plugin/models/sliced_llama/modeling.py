"""Adds shortcuts in the residual connections to transformers' own LLaMA."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from funcnet_plugin.models.sliced_llama.configuration import SlicedLlamaConfig


class SlicedLlamaDecoderLayer(LlamaDecoderLayer):
    """Gives each of its two blocks axes of its own; residuals are turned from one to the next."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        residual = self.attn_shortcut(hidden_states)
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(
            hidden_states=hidden_states, attention_mask=attention_mask, **kwargs
        )
        hidden_states = residual + hidden_states
        residual = self.mlp_shortcut(hidden_states)
        hidden_states = self.post_attention_layernorm(hidden_states)
        return residual + self.mlp(hidden_states)


class SlicedLlamaForCausalLM(LlamaForCausalLM):
    """Is a LLaMA of sliced layers."""

    config_class = SlicedLlamaConfig
    config: SlicedLlamaConfig
    _no_split_modules = ["SlicedLlamaDecoderLayer"]  # noqa: RUF012, the form transformers has it in

    def __init__(self, config: SlicedLlamaConfig) -> None:
        super().__init__(config)
        self.add_shortcuts()

    def add_shortcuts(self) -> None:
        """Make the layers of a stock LLaMA those of a sliced one. Module objects stay."""
        size = self.config.hidden_size
        for layer in self.model.layers:
            layer.__class__ = SlicedLlamaDecoderLayer
            layer.attn_shortcut = nn.Linear(size, size, bias=False)
            layer.mlp_shortcut = nn.Linear(size, size, bias=False)


def make_sliced(model: LlamaForCausalLM, size: int) -> None:
    """Turn a LLaMA whose weights were cut to `size` into a `SlicedLlamaForCausalLM`, in place."""
    model.config.__class__ = SlicedLlamaConfig
    model.config.hidden_size = size
    model.__class__ = SlicedLlamaForCausalLM
    model.config.architectures = [SlicedLlamaForCausalLM.__name__]
    model.add_shortcuts()
