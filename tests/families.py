"""A tiny random model of every built-in architecture, and what its family can do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from funcnet_plugin.adapters.builtin import ADAPTERS

WIDTH = 48
_COMMON = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GATED = _COMMON | {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": WIDTH}


@dataclass(frozen=True)
class Family:
    """Attributes:
    model_type, settings: of the config.
    bias: whether `repair: bias` can be saved.
    gptq: whether what llm-compressor's GPTQ saves of it loads with the same logits. Not so for
        Conv1D, which it does not target, and for Falcon, pruned or not.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=lambda: dict(_GATED))
    bias: bool = False
    gptq: bool = True

    def build(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **self.settings)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        with torch.no_grad():  # the default initialisation hardly uses the MLPs
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and "embed" not in name:
                    parameter.normal_(std=0.3)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
        return model


def _ungated(model_type: str, **more: Any) -> Family:
    return Family(model_type, _COMMON | more, bias=True)


FAMILIES = {
    "llama": Family("llama", bias=True),
    "mistral": Family("mistral"),
    "ministral": Family("ministral"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma"),
    "gemma2": Family("gemma2"),
    "gemma3": Family("gemma3_text"),
    "olmo": Family("olmo"),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3"),
    "cohere": Family("cohere"),
    "cohere2": Family("cohere2"),
    "granite": Family("granite", bias=True),
    "stablelm": Family("stablelm"),
    "smollm3": Family("smollm3", bias=True),
    "helium": Family("helium", bias=True),
    "seed_oss": Family("seed_oss", bias=True),
    "ernie4_5": Family("ernie4_5", bias=True),
    "hunyuan": Family("hunyuan_v1_dense"),
    "exaone4": Family("exaone4"),
    "phi3": Family("phi3"),
    "glm": Family("glm"),
    "chatglm": Family("chatglm"),
    "glm4": Family("glm4"),
    "nemotron": Family("nemotron", bias=True),
    "arcee": Family("arcee", bias=True),
    "gpt2": Family("gpt2", _COMMON | {"n_inner": WIDTH}, bias=True, gptq=False),  # Conv1D
    "gptj": _ungated("gptj", n_inner=WIDTH, rotary_dim=4),
    "gpt_neox": _ungated("gpt_neox", intermediate_size=WIDTH),
    "falcon": Family("falcon", _COMMON | {"ffn_hidden_size": WIDTH}, gptq=False),
    "opt": _ungated("opt", ffn_dim=WIDTH, word_embed_proj_dim=32),
    "phi": _ungated("phi", intermediate_size=WIDTH),
    "persimmon": _ungated("persimmon", intermediate_size=WIDTH),
    "starcoder2": _ungated("starcoder2", intermediate_size=WIDTH, num_key_value_heads=2),
}


def support_table() -> str:
    """The table of docs/architectures.md; what it says is what `test_families.py` runs."""
    rows = ["| family | tested class | MLP | uniform, per-layer | bias | GPTQ |", "|---" * 6 + "|"]
    for adapter in ADAPTERS:
        family = FAMILIES[adapter.name]
        kind = "fused" if adapter.fused else "gated" if adapter.gate else "ungated"
        rows.append(
            f"| {adapter.name} | {adapter.architectures[0]} | {kind} | yes | "
            f"{'yes' if family.bias else 'refused'} | {'yes' if family.gptq else 'no: host'} |"
        )
    return "\n".join(rows)
