"""Makes transformers know the config of the original format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.models.first_use import used

if TYPE_CHECKING:
    from transformers import GlmConfig

# What the native network computes; the original code could also do otherwise.
_REQUIRED = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "rmsnorm": True,
    "pre_seq_len": None,
    "quantization_bit": 0,
}
# The first ChatGLM is another network (two-dimensional positions, LayerNorm, GELU).
_FIRST_GENERATION = ("position_encoding_2d", "inner_hidden_size", "max_sequence_length")
_CARRIED_OVER = ("functional_network", "per_layer_config", "quantization_config")


@strict
class ChatGLMConfig(PreTrainedConfig):
    """Holds config.json of ChatGLM3 and ChatGLM2 as published (`model_type: chatglm`).

    Fields have the original names; the standard ones (`intermediate_size`, ...) lead to them.
    Keys that are not listed are kept and written back.

    Raises:
        CheckpointError: a first-generation ChatGLM, or a setting that the native network lacks.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012, the form that transformers has it in
        "attention_bias": "add_qkv_bias",
        "head_dim": "kv_channels",
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "seq_length",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "rms_norm_eps": "layernorm_epsilon",
        "vocab_size": "padded_vocab_size",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    seq_length: int = 8192
    layernorm_epsilon: float = 1e-5
    add_qkv_bias: bool = True
    rope_ratio: float | int = 1
    attention_dropout: float | int = 0.0
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    bos_token_id: int | None = None
    tokenizer_class: str | None = "ChatGLMTokenizer"

    def __post_init__(self, **kwargs: Any) -> None:
        _check(kwargs)
        if not self.multi_query_attention:
            self.multi_query_group_num = self.num_attention_heads
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": 10000.0 * self.rope_ratio,
            "partial_rotary_factor": 0.5,
        }
        super().__post_init__(**kwargs)
        used(self.model_type)

    def to_dict(self) -> dict[str, Any]:
        """Give the original keys.

        Rotary parameters follow from `rope_ratio`, and the class name is the one by which readers
        of this format know it.
        """
        entries = super().to_dict()
        entries.pop("rope_parameters", None)
        if entries.get("dtype") is not None:
            entries["torch_dtype"] = entries["dtype"]  # as transformers 4 calls it
        if entries.get("architectures"):
            entries["architectures"] = ["ChatGLMModel"]
        return entries

    def to_glm(self) -> GlmConfig:
        """Describe the same model in a config of transformers' own `glm`."""
        from transformers import GlmConfig

        standard = {original: name for name, original in self.attribute_map.items()}
        entries = {standard.get(key, key): value for key, value in super().to_dict().items()}
        # Without the source's name: by it llm-compressor would put the original config.json back.
        known = {*GlmConfig().to_dict(), *_CARRIED_OVER} - {"model_type", "_name_or_path"}
        config = GlmConfig(**{key: value for key, value in entries.items() if key in known})
        config.architectures = ["GlmForCausalLM"]
        config._attn_implementation = self._attn_implementation
        return config


def _check(entries: dict[str, Any]) -> None:
    if any(key in entries for key in _FIRST_GENERATION):
        raise CheckpointError(
            "this is a first-generation ChatGLM, another network than ChatGLM2 and ChatGLM3 "
            "(two-dimensional positions, LayerNorm, GELU), which is not supported; use ChatGLM3."
        )
    for key, value in _REQUIRED.items():
        if entries.get(key, value) != value:
            raise CheckpointError(
                f"a ChatGLM with {key}={entries[key]!r} is not supported, only {value!r}, which is "
                "what ChatGLM2 and ChatGLM3 were published with."
            )
