"""Makes transformers know the config of a sliced LLaMA."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from funcnet_plugin.models.first_use import used


@strict
class SlicedLlamaConfig(PreTrainedConfig):
    """Holds LlamaConfig's fields.

    `hidden_size` is what slicing left and divides by nothing, so `head_dim` stands beside it.

    Not derived from LlamaConfig: this file runs while transformers' auto classes are being
    imported, and LlamaConfig needs them.
    """

    model_type = "sliced_llama"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 32000
    hidden_size: int = 4096
    head_dim: int = 128
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        used(self.model_type)
