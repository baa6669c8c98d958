"""LLaMA whose layers have MLPs of different widths, for plain transformers and what builds on it.

`block_configs` in config.json has one entry per layer. The width of its MLP is
`int(2 * ffn_mult * hidden_size / 3)`, rounded up to a multiple of 256.
"""

import copy

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP

GRID = 256


def width_of(ffn_mult, hidden_size):
    """Give the width of an MLP, as the runtimes work it out."""
    return -(-int(2 * ffn_mult * hidden_size / 3) // GRID) * GRID


class Block(dict):
    """Holds JSON whose keys can be read as attributes too, which is what runtimes do."""

    def __init__(self, entries):
        nested = {k: Block(v) if isinstance(v, dict) else v for k, v in entries.items()}
        super().__init__(nested)

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [Block(entry) for entry in block_configs or ()]


class DeciLMModel(LlamaModel):
    config_class = DeciLMConfig

    def __init__(self, config):
        super().__init__(config)
        for layer, block in zip(self.layers, config.block_configs, strict=True):
            own = copy.copy(config)
            own.intermediate_size = width_of(block.ffn.ffn_mult, config.hidden_size)
            layer.mlp = LlamaMLP(own)
        self.post_init()


class DeciLMForCausalLM(LlamaForCausalLM):
    config_class = DeciLMConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = DeciLMModel(config)
        self.post_init()
