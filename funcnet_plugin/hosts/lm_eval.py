"""Adds `lm_eval --model funcnet`: lm-eval's own `hf`, for every checkpoint that we write.

Numbers are those of `--model hf` on the same checkpoint. What it adds: checkpoints whose config and
weights disagree are refused in one sentence, unknown arguments too; `mask=` asks what a set of kept
neurons would cost, without surgery; `atlas=` and `lesion=` what networks do.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel

from funcnet_plugin.adapters import bind
from funcnet_plugin.adapters.attention import bind_attention
from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.atlas.atlas import MEMBER
from funcnet_plugin.atlas.checks import check_depth, check_neurons, check_widths
from funcnet_plugin.atlas.checks import check_weights as check_atlas_weights
from funcnet_plugin.checkpoints.block import BLOCK_KEY, read_heads, read_kept, read_layers
from funcnet_plugin.checkpoints.loading import (
    check_is_there,
    load_tokenizer,
    read_model_config,
)
from funcnet_plugin.checkpoints.weights import check_weights
from funcnet_plugin.cut.activity import apply_mask
from funcnet_plugin.errors import CheckpointError, FuncnetError, NumbersError
from funcnet_plugin.lesions import lesion_of, select
from funcnet_plugin.text.windows import check_ids

# Arguments that `from_pretrained` takes out of its **kwargs (its docstring), and those of
# BitsAndBytesConfig that lm-eval's `hf` documents.
_PASSED_ON = frozenset(
    [
        "attn_implementation",
        "cache_dir",
        "device_map",
        "experts_implementation",
        "force_download",
        "key_mapping",
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "local_files_only",
        "low_cpu_mem_usage",
        "max_memory",
        "offload_buffers",
        "offload_state_dict",
        "proxies",
        "quantization_config",
        "token",
        "torch_dtype",
        "tp_size",
        "use_safetensors",
        "variant",
        "weights_only",
    ]
)
_OTHER_FILES = ("gguf_file", "subfolder", "variant", "key_mapping")


class FuncnetLM(HFLM):
    """Scores a pruned, masked, quantized or dense checkpoint, as lm-eval model.

    Args:
        pretrained: checkpoint directory or hub name.
        mask: kept_neurons.json, or a pruned checkpoint that holds one. The other neurons of
            `pretrained` are silenced, which gives what cutting them without repair would give.
        atlas: directory of the model's atlas; goes with `lesion`.
        lesion: which networks, see `lesions.select`.
        mode, gain, add, threshold: what is done to their neurons, see `lesions.lesion_of`.
        **kwargs: the arguments of lm-eval's `hf` model.

    Raises:
        FuncnetError: an argument or a directory that does not exist, a mask or an atlas of another
            model, a checkpoint whose config and weights disagree; while it scores, a token that the
            model does not have, or predictions that a lesion makes overflow.
    """

    def __init__(
        self,
        pretrained: str,
        mask: str | None = None,
        device: str | None = None,
        atlas: str | None = None,
        lesion: str | None = None,
        mode: str = "zero",
        gain: float | None = None,
        add: float | None = None,
        threshold: float = MEMBER,
        **kwargs: Any,
    ) -> None:
        _check_arguments(kwargs)
        if (atlas is None) != (lesion is None):
            raise FuncnetError(
                "atlas= and lesion= go together: the networks to change, and the atlas that has "
                "them."
            )
        if device is None:  # `hf` takes cuda then, whether there is one or not
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kept = None if mask is None else read_kept(mask)
        self._lesion = None
        if atlas is not None and lesion is not None:
            known = read_atlas(atlas)
            check_neurons(known, str(atlas))
            self._lesion = lesion_of(
                known, select(known, lesion), mode, gain=gain, add=add, threshold=float(threshold)
            )
        if isinstance(pretrained, str):
            check_is_there(pretrained)
            if Path(pretrained).is_dir():
                _check_files(pretrained, kwargs)
        super().__init__(pretrained, device=device, **kwargs)
        if kept is not None:
            _silence(self.model, *kept, mask)
        if self._lesion is not None:
            units = bind(self.model).blocks
            check_widths(known, units, atlas)
            check_depth(known, len(units), atlas)
            if getattr(self.model.config, "quantization_config", None) is None:
                check_atlas_weights(known, units, atlas)
            self._lesion.apply(units)

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_ids(inps.tolist(), self.model)
        logits = super()._model_call(inps, *args, **kwargs)
        if self._lesion is not None and bool(torch.isnan(logits).any()):
            raise NumbersError(
                f"with this lesion the model predicts NaN: gain {self._lesion.gain:g} and add "
                f"{self._lesion.add:g} overflow {self.model.dtype}; take smaller ones."
            )
        return logits

    def _model_generate(self, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_ids(context.tolist(), self.model)
        return super()._model_generate(context, *args, **kwargs)


def _check_files(directory: str, kwargs: dict[str, Any]) -> None:
    """Refuse a checkpoint whose config and weights disagree, or whose tokenizer cannot load."""
    if any(kwargs.get(name) for name in _OTHER_FILES):
        return  # not those that a checkpoint directory is read from
    trusted = bool(kwargs.get("trust_remote_code"))
    check_weights(directory, read_model_config(directory, trusted))
    if not trusted and kwargs.get("tokenizer") is None:
        load_tokenizer(directory)


def _check_arguments(kwargs: dict[str, Any]) -> None:
    known = {
        name
        for function in (HFLM.__init__, HFLM._create_model, PreTrainedModel.from_pretrained)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    unknown = sorted(set(kwargs) - known - _PASSED_ON)
    if unknown:
        raise FuncnetError(
            f"--model funcnet has no argument {unknown[0]!r}; it takes mask=, atlas= with lesion= "
            "and those of --model hf."
        )


def _silence(model: PreTrainedModel, widths: list[int], kept: list[list[int]], source: str) -> None:
    layout = bind(model)
    layers = read_layers(source)
    if layers != (getattr(model.config, BLOCK_KEY, None) or {}).get("kept_layers"):
        raise CheckpointError(
            f"the mask {source} is of {_these(layers)} and the model has other ones; a mask "
            "silences neurons and cannot take layers out, so give the model with just these layers."
        )
    if layout.widths != widths:
        raise CheckpointError(
            f"the mask {source} is for {len(widths)} layers of widths {_short(widths)}, and the "
            f"model has {len(layout.widths)} of {_short(layout.widths)}; give the model that the "
            "mask was made for."
        )
    for block, keep in zip(layout.blocks, kept, strict=True):
        apply_mask(block, keep)
    heads = read_heads(source)
    if heads is not None:
        _silence_heads(model, layout.adapter.layers, heads, source)


def _silence_heads(model: PreTrainedModel, layers: str, kept: list[list[int]], source: str) -> None:
    units = bind_attention(model, layers)
    if any(keep[-1] >= unit.width for unit, keep in zip(units, kept, strict=True)):
        raise CheckpointError(
            f"the mask {source} is for more heads than the {units[0].width} key-value heads of "
            "the model; give the model that the mask was made for."
        )
    for unit, keep in zip(units, kept, strict=True):
        apply_mask(unit, keep)


def _these(layers: list[int] | None) -> str:
    return "all layers" if layers is None else f"layers {', '.join(map(str, layers))} of its source"


def _short(widths: list[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))
