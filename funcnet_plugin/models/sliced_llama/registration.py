"""Tells transformers' auto classes about the network of a sliced LLaMA."""

from __future__ import annotations

from transformers import AutoModelForCausalLM

from funcnet_plugin.models.sliced_llama.configuration import SlicedLlamaConfig
from funcnet_plugin.models.sliced_llama.modeling import SlicedLlamaForCausalLM


def register_classes() -> None:
    """Register it; see `models.first_use` for when."""
    AutoModelForCausalLM.register(SlicedLlamaConfig, SlicedLlamaForCausalLM, exist_ok=True)
