"""Writes a LLaMA of several widths as `DeciLMForCausalLM`, which servers have of their own.

vLLM, SGLang, TensorRT-LLM and MLX-LM have this architecture, by the name nemotron-nas. They read
the width of a layer from `ffn_mult` and round it up to a multiple of 256. What other programs need
is in `decilm.py`, which goes along.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import PER_LAYER_KEY, read_config
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.export import decilm
from funcnet_plugin.export.files import copy_side_files, load_full_precision, save
from funcnet_plugin.export.llama_like import check_silu_and_positions

GRID = decilm.GRID
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_MODULE = "modeling_decilm"
_PLAIN = {"no_op": False, "replace_with_linear": False}


def export(source: Path, out: Path) -> None:
    """Write the checkpoint that vLLM, SGLang, TensorRT-LLM and MLX-LM load.

    Args:
        source: a checkpoint directory, uniform or per-layer.
        out: an existing, empty directory.

    Raises:
        CheckpointError: not a LLaMA, it has what one of the four does not read, or a layer's width
            is no multiple of 256.
    """
    model = load_full_precision(source)
    check_architecture(model, str(source))
    check_widths(bind(model).widths, str(source))
    save(model, out)
    copy_side_files(source, out)
    shutil.copyfile(decilm.__file__, out / f"{_MODULE}.py")
    described = _described(model, read_config(out))
    (out / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def check_architecture(model: PreTrainedModel, where: str) -> None:
    """Refuse what one of the four runtimes would compute otherwise, or not at all.

    Args:
        model: may be on the meta device.
        where: it is from, for a message.

    Raises:
        CheckpointError: see above.
    """
    config, architecture = model.config, type(model).__name__
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{where} is a {architecture}; nemotron-nas is for {' and '.join(ARCHITECTURES)}."
        )
    check_silu_and_positions(config, where, "nemotron-nas")
    biased = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    if biased:
        raise CheckpointError(
            f"{where} has the bias {biased[0]}, which TensorRT-LLM and SGLang do not read; prune "
            "with another repair than bias, or take another model."
        )
    heads, size = config.num_attention_heads, config.head_dim or 0
    if size * heads != config.hidden_size:
        raise CheckpointError(
            f"{where} has {heads} heads of {size}, and MLX-LM wants heads that fill the "
            f"{config.hidden_size} of a token; prune without heads_ratio, or take another model."
        )
    if getattr(config, "sliding_window", None):
        raise CheckpointError(
            f"{where} looks back {config.sliding_window} tokens only, which nemotron-nas cannot "
            "say; set sliding_window to null in its config.json if your texts are shorter."
        )


def check_widths(widths: Sequence[int], where: str) -> None:
    """Refuse widths that the runtimes would round up.

    Args:
        widths: neurons of the MLP, per layer.
        where: they are from, for a message.

    Raises:
        CheckpointError: a layer's width is no multiple of 256; says the nearest that are.
    """
    for number, width in enumerate(widths):
        if not width or width % GRID:
            below, above = width // GRID * GRID, -(-width // GRID) * GRID
            nearest = f"{below} and {above}" if below else f"{max(above, GRID)}"
            raise CheckpointError(
                f"layer {number} of {where} has {width} neurons, and nemotron-nas holds multiples "
                f"of {GRID}, the nearest of which {'are' if below else 'is'} {nearest}; prune with "
                f"align: {GRID}, or export as padded or remote-code."
            )


def _described(model: PreTrainedModel, saved: dict[str, Any]) -> dict[str, Any]:
    """Turn the config.json of a LLaMA into what the runtimes read."""
    config, widths = model.config, bind(model).widths
    group = config.num_attention_heads // config.num_key_value_heads
    rope = dict(config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.get("rope_type", "default")
    auto = {
        "AutoConfig": decilm.DeciLMConfig,
        "AutoModel": decilm.DeciLMModel,
        "AutoModelForCausalLM": decilm.DeciLMForCausalLM,
    }
    return {key: value for key, value in saved.items() if key != PER_LAYER_KEY} | {
        "architectures": [decilm.DeciLMForCausalLM.__name__],
        "auto_map": {name: f"{_MODULE}.{made.__name__}" for name, made in auto.items()},
        "block_configs": [
            {
                "attention": _PLAIN | {"n_heads_in_group": group},
                "ffn": _PLAIN | {"ffn_mult": 3 * width / (2 * config.hidden_size)},
            }
            for width in widths
        ],
        "intermediate_size": max(widths),
        "model_type": decilm.DeciLMConfig.model_type,
        # As programs before transformers 5 read rotary positions.
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope,
    }
