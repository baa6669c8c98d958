"""The architectures that work out of the box."""

from __future__ import annotations

from funcnet_plugin.adapters.hookspecs import hookimpl
from funcnet_plugin.adapters.spec import MLPAdapter

# All of these have the LLaMA MLP: gate_proj, up_proj, down_proj as separate Linear modules and
# act_fn a module. They differ in whether stock modelling code can carry a bias on down_proj.
ADAPTERS = (
    MLPAdapter("llama", ("LlamaForCausalLM",), bias_key="mlp_bias"),  # LLaMA 1-3, Vicuna, Yi
    MLPAdapter("mistral", ("MistralForCausalLM",)),
    MLPAdapter("qwen2", ("Qwen2ForCausalLM",)),
    MLPAdapter("qwen3", ("Qwen3ForCausalLM",)),
    MLPAdapter("gemma", ("GemmaForCausalLM",)),
    MLPAdapter("gemma2", ("Gemma2ForCausalLM",)),
    MLPAdapter("olmo2", ("Olmo2ForCausalLM",)),
    MLPAdapter("granite", ("GraniteForCausalLM",), bias_key="mlp_bias"),
    MLPAdapter("smollm3", ("SmolLM3ForCausalLM",), bias_key="mlp_bias"),
)


@hookimpl(trylast=True)  # so that a plugin's adapter for the same architecture comes first
def funcnet_adapters() -> tuple[MLPAdapter, ...]:
    return ADAPTERS
