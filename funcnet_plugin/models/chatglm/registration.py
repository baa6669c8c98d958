"""Tells transformers' auto classes about the network and the tokenizer of ChatGLM."""

from __future__ import annotations

from transformers import AutoModel, AutoModelForCausalLM, GlmConfig
from transformers.models.auto import tokenization_auto

from funcnet_plugin.models.chatglm.configuration import ChatGLMConfig
from funcnet_plugin.models.chatglm.modeling import ChatGLMForCausalLM, register_conversion
from funcnet_plugin.models.chatglm.tokenization import ChatGLMTokenizer


def register_classes() -> None:
    """Register them; see `models.first_use` for when."""
    ChatGLMConfig.base_model_tp_plan = GlmConfig.base_model_tp_plan
    ChatGLMConfig.base_model_pp_plan = GlmConfig.base_model_pp_plan
    register_conversion()
    # `AutoModel` gives the language model, as the original's auto_map does.
    for auto_class in (AutoModel, AutoModelForCausalLM):
        auto_class.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)
    # By name only: were the config registered, trust_remote_code=True, which users of ChatGLM are
    # used to pass, would still load the original tokenizer, and that does not run.
    tokenization_auto.REGISTERED_TOKENIZER_CLASSES["ChatGLMTokenizer"] = ChatGLMTokenizer
