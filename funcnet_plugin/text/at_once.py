"""Decides how many windows a model writes at once, from the memory that is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from funcnet_plugin.measure.free_memory import free_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# More at once gain little: on one core 16, 64 and 192 write 149, 275 and 367 tokens a second.
_MOST = {"cpu": 256}
_MOST_ON_GPU = 1024
# Multiply-adds of one step on a CPU, some seconds: between two steps the bar stands still.
_STEP_ON_CPU = 256e9
# Of what is free. A GPU's allocator leaves gaps; on a CPU others need memory too, and who takes too
# much is not told but killed.
_SHARE = {"cpu": 0.25}
_SHARE_ON_GPU = 0.8
_FLOAT32 = 4
# float32 copies of the predictions: as `generate` takes them, probabilities, and one in passing
_COPIES = 3


def windows_at_once(network: PreTrainedModel, window: int) -> int:
    """Say how many windows of so many tokens fit into the memory that is free.

    On a CPU they are fewer where one step of all would take long.

    Args:
        network: in memory, on the device that it will write on.
    """
    return windows_within(free_bytes(network.device), network, window, network.device.type)


def windows_within(free: float, network: PreTrainedModel, window: int, device: str) -> int:
    """Compute how many windows are written at once.

    Args:
        free: bytes of the device that are free, weights being there.
        network: may be on the meta device.
        window: tokens of each.
        device: its type.
    """
    room = _SHARE.get(device, _SHARE_ON_GPU) * free
    most = _MOST.get(device, _MOST_ON_GPU)
    if device == "cpu":
        most = min(most, int(_STEP_ON_CPU / sum(p.numel() for p in network.parameters())))
    return max(1, min(most, int(room / bytes_per_window(network, window))))


def bytes_per_window(network: PreTrainedModel, window: int) -> int:
    """Count the bytes that a window takes while it is written, besides weights.

    They are those of its keys and values, with one layer's twice, for they grow by being copied,
    and of predictions for the whole vocabulary, in the model's dtype and in float32 copies.
    """
    config, itemsize = network.config.get_text_config(), network.dtype.itemsize
    layers = config.num_hidden_layers
    keys = numbers_per_token(config) * itemsize * window
    vocabulary = network.get_input_embeddings().num_embeddings
    return keys + keys // layers + vocabulary * (itemsize + _COPIES * _FLOAT32)


def numbers_per_token(config: PretrainedConfig) -> int:
    """Count the keys and values that a model keeps of every token, over all layers.

    Layers with a sliding window count like the others: windows are shorter than most of these.
    """
    heads = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):  # DeepSeek: keys of two parts, for every head
        of_heads = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        return config.num_hidden_layers * heads * of_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers * 2 * _groups(config) * size


def _groups(config: PretrainedConfig) -> int:
    """Count the heads that have keys and values of their own."""
    if getattr(config, "new_decoder_architecture", False):  # Falcon keeps them for all heads
        return config.num_attention_heads
    if getattr(config, "multi_query", False):
        return 1
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an allocator of torch, of a GPU or the CPU's, found no memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
