"""Lists the architectures that work out of the box, and those that cannot."""

from __future__ import annotations

from dataclasses import replace

from funcnet_plugin.adapters.spec import MLPAdapter
from funcnet_plugin.plugins import hookimpl

# gate_proj, up_proj, down_proj as separate Linear modules, act_fn a module.
_SPLIT = MLPAdapter(
    "llama",
    ("LlamaForCausalLM", "SlicedLlamaForCausalLM"),  # LLaMA 1-3, Vicuna, Yi; after SliceGPT
    bias_key="mlp_bias",
)


def _split(name: str, architecture: str, bias_key: str | None = None) -> MLPAdapter:
    return replace(_SPLIT, name=name, architectures=(architecture,), bias_key=bias_key)


# gate and up stacked in one projection.
_FUSED = MLPAdapter(
    "phi3", ("Phi3ForCausalLM",), gate=None, up="gate_up_proj", fused=True,
    activation="activation_fn",
)  # fmt: skip

# No gate. Under its own names in every family.
_UNGATED = MLPAdapter("nemotron", ("NemotronForCausalLM",), bias_key="mlp_bias", gate=None)

ADAPTERS = (
    _SPLIT,
    _split("mistral", "MistralForCausalLM"),
    _split("ministral", "MinistralForCausalLM"),
    _split("qwen2", "Qwen2ForCausalLM"),  # and 2.5
    _split("qwen3", "Qwen3ForCausalLM"),
    _split("gemma", "GemmaForCausalLM"),
    _split("gemma2", "Gemma2ForCausalLM"),
    _split("gemma3", "Gemma3ForCausalLM"),  # text
    _split("olmo", "OlmoForCausalLM"),
    _split("olmo2", "Olmo2ForCausalLM"),
    _split("olmo3", "Olmo3ForCausalLM"),
    _split("cohere", "CohereForCausalLM"),
    _split("cohere2", "Cohere2ForCausalLM"),
    _split("granite", "GraniteForCausalLM", "mlp_bias"),
    _split("stablelm", "StableLmForCausalLM"),
    _split("smollm3", "SmolLM3ForCausalLM", "mlp_bias"),
    _split("helium", "HeliumForCausalLM", "mlp_bias"),
    _split("seed_oss", "SeedOssForCausalLM", "mlp_bias"),
    _split("ernie4_5", "Ernie4_5ForCausalLM", "use_bias"),
    _split("hunyuan", "HunYuanDenseV1ForCausalLM"),
    _split("exaone4", "Exaone4ForCausalLM"),
    _FUSED,
    replace(_FUSED, name="glm", architectures=("GlmForCausalLM",)),
    replace(_FUSED, name="chatglm", architectures=("ChatGLMForCausalLM",)),  # and 2
    replace(_FUSED, name="glm4", architectures=("Glm4ForCausalLM",)),
    _UNGATED,
    replace(_UNGATED, name="arcee", architectures=("ArceeForCausalLM",)),
    MLPAdapter(
        "gpt2", ("GPT2LMHeadModel",), layers="transformer.h", gate=None, up="c_fc", down="c_proj",
        activation="act", width_key="n_inner",
    ),
    MLPAdapter(
        "gptj", ("GPTJForCausalLM",), layers="transformer.h", gate=None, up="fc_in",
        down="fc_out", activation="act", width_key="n_inner",
    ),
    MLPAdapter(
        "gpt_neox", ("GPTNeoXForCausalLM",), layers="gpt_neox.layers", gate=None,
        up="dense_h_to_4h", down="dense_4h_to_h", activation="act",
    ),  # and Pythia
    MLPAdapter(
        "falcon", ("FalconForCausalLM",), layers="transformer.h", gate=None, up="dense_h_to_4h",
        down="dense_4h_to_h", activation="act", width_key="ffn_hidden_size",
    ),
    MLPAdapter(
        "opt", ("OPTForCausalLM",), layers="model.decoder.layers", mlp="", gate=None, up="fc1",
        down="fc2", activation="activation_fn", width_key="ffn_dim",
    ),
    MLPAdapter(
        "phi", ("PhiForCausalLM",), gate=None, up="fc1", down="fc2", activation="activation_fn",
    ),  # 1, 1.5 and 2
    MLPAdapter(
        "persimmon", ("PersimmonForCausalLM",), gate=None, up="dense_h_to_4h",
        down="dense_4h_to_h", activation="act",
    ),
    MLPAdapter(
        "starcoder2", ("Starcoder2ForCausalLM",), gate=None, up="c_fc",
        down="c_proj",
        activation="act",
    ),
)  # fmt: skip

# Why pruning them would give a checkpoint that nobody can load.
_FIXED_WIDTH = "its modelling code computes the width from the hidden size, so no config can say it"
REFUSED = {
    "BloomForCausalLM": _FIXED_WIDTH,
    "MptForCausalLM": _FIXED_WIDTH,
    "OpenAIGPTLMHeadModel": _FIXED_WIDTH,
}


@hookimpl(trylast=True)  # so that a plugin's adapter for the same architecture comes first
def funcnet_adapters() -> tuple[MLPAdapter, ...]:
    return ADAPTERS
