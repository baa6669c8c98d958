"""Writes GGUF, the file that llama.cpp and what stands on it read.

Layers of one width go under the architecture's own name. Layers of several widths go under `deci`,
the one whose tensors are LLaMA's and whose `feed_forward_length` may be a list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CheckpointError, FuncnetError
from funcnet_plugin.export.files import load_full_precision
from funcnet_plugin.export.gguf_vocabulary import Vocabulary, read_vocabulary
from funcnet_plugin.export.llama_like import check_silu_and_positions

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig, PreTrainedModel

VARIANTS = ("f32", "f16", "bf16", "q8_0", "q4_0")
_OF_DTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_BLOCK = 32  # of a row of the quantized ones


@dataclass(frozen=True)
class Known:
    """Says how llama.cpp has an architecture.

    Attributes:
        name: there.
        pairs: rotary pairs stand side by side there and not half a head apart, so the rows of query
            and key change places.
        mlp_bias: whether it reads biases of the MLP.
        irregular: whether `deci` computes the same, layers of other widths aside.
    """

    name: str
    pairs: bool = False
    mlp_bias: bool = False
    irregular: bool = True


ARCHITECTURES = {
    "LlamaForCausalLM": Known("llama", pairs=True, mlp_bias=True),
    "MistralForCausalLM": Known("llama", pairs=True, mlp_bias=True),
    "Qwen2ForCausalLM": Known("qwen2"),
    "Qwen3ForCausalLM": Known("qwen3", irregular=False),  # norms of query and key
}
_DECI = Known("deci", pairs=True, mlp_bias=True)


def export(source: Path, out: Path, variant: str | None = None) -> None:
    """Write model.gguf, tokenizer and chat template inside.

    Args:
        source: a checkpoint directory, uniform or per-layer.
        out: an existing, empty directory.
        variant: one of `VARIANTS`, of the matrices; the checkpoint's own dtype if not given. Norms
            and biases are float32.

    Raises:
        FuncnetError: the package gguf is missing, or there is no such variant.
        CheckpointError: GGUF cannot hold this model, or its tokenizer.
    """
    if variant is not None and variant not in VARIANTS:
        raise FuncnetError(f"GGUF is written as {', '.join(VARIANTS)}, not as {variant!r}.")
    if find_spec("gguf") is None:
        raise FuncnetError("GGUF export needs the package gguf; install funcnet-plugin[gguf].")
    import gguf

    model = load_full_precision(source)
    config = model.config
    widths = bind(model).widths
    known = architecture_of(model, str(source), irregular=len(set(widths)) > 1)
    vocabulary = read_vocabulary(source, config.vocab_size)
    variant = variant or _OF_DTYPE.get(model.dtype, "f32")
    _check_rows(source, model, variant)
    writer = gguf.GGUFWriter(out / "model.gguf", known.name)
    _describe(writer, config, widths, variant, source.resolve().name)
    _write_vocabulary(writer, vocabulary, source)
    kind = gguf.GGMLQuantizationType[variant.upper()]
    for name, tensor in _tensors(model, known):
        plain = tensor.float().cpu().numpy()
        if tensor.dim() > 1:
            writer.add_tensor(name, gguf.quantize(plain, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, plain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture_of(model: PreTrainedModel, where: str, *, irregular: bool) -> Known:
    """Find the name that a model has in llama.cpp, and refuse what it would compute otherwise.

    Args:
        where: it is from, for a message.
        irregular: its layers have several widths, or will have.

    Raises:
        CheckpointError: llama.cpp has no such model.
    """
    config, architecture = model.config, type(model).__name__
    known = ARCHITECTURES.get(architecture)
    if known is None:
        raise CheckpointError(
            f"{where} is a {architecture}; GGUF is written for {', '.join(ARCHITECTURES)}."
        )
    if irregular and not known.irregular:
        raise CheckpointError(
            f"{where} is a {architecture}, of which llama.cpp reads one width for all layers; "
            "prune with allocation: uniform, or export as padded first."
        )
    if irregular:
        known = _DECI
    check_silu_and_positions(config, where, "GGUF")
    biased = any(".mlp." in n and n.endswith("bias") for n, _ in model.named_parameters())
    if biased and not known.mlp_bias:
        raise CheckpointError(
            f"{where} has biases in its MLPs, which llama.cpp does not read of a {architecture}; "
            "prune with another repair than bias."
        )
    return known


def _check_rows(source: Path, model: PreTrainedModel, variant: str) -> None:
    if variant not in ("q8_0", "q4_0"):
        return
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and weight.shape[1] % _BLOCK:
            raise CheckpointError(
                f"{name} of {source} has rows of {weight.shape[1]}, and {variant} holds multiples "
                f"of {_BLOCK}; prune with align: {_BLOCK}, or export as gguf:f16."
            )


def _describe(
    writer: GGUFWriter, config: PreTrainedConfig, widths: list[int], variant: str, name: str
) -> None:
    import gguf

    n_layers, heads = len(widths), config.num_attention_heads
    head_size = _head_size(config)
    rope = config.rope_parameters
    writer.add_name(name)
    writer.add_file_type(
        {
            "f32": gguf.LlamaFileType.ALL_F32,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
            "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
        }[variant]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(n_layers)
    writer.add_context_length(
        min(config.max_position_embeddings, getattr(config, "sliding_window", None) or math.inf)
    )
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    irregular = len(set(widths)) > 1
    writer.add_head_count([heads] * n_layers if irregular else heads)
    groups = config.num_key_value_heads
    writer.add_head_count_kv([groups] * n_layers if irregular else groups)
    writer.add_feed_forward_length(widths if irregular else widths[0])


def _write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, source: Path) -> None:
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    special = gguf.SpecialVocab(source, n_vocab=len(vocabulary.tokens))
    special.add_to_gguf(writer, quiet=True)


def _tensors(model: PreTrainedModel, known: Known) -> Iterator[tuple[str, Tensor]]:
    """Give every tensor under the name that it has in GGUF."""
    import gguf

    config = model.config
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == known.name)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.named_parameters():  # one that is tied comes once
        module, _, kind = name.rpartition(".")
        found = names.get_name(module)
        if found is None:
            raise CheckpointError(f"{name} has no name in GGUF's {known.name}.")
        projection = module.rpartition(".")[2]
        if known.pairs and projection in heads:
            tensor = _side_by_side(tensor, heads[projection])
        yield f"{found}.{kind}", tensor.detach()
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _slower(model)


def _side_by_side(tensor: Tensor, heads: int) -> Tensor:
    """Put the two rows of each rotary pair side by side; they stand half a head apart."""
    split = tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape)


def _slower(model: PreTrainedModel) -> Tensor:
    """Tell by how much Llama 3 slows each rotary frequency down, (head size / 2,), float32."""
    config, head_size = model.config, _head_size(model.config)
    base = config.rope_parameters["rope_theta"]
    plain = base ** -(torch.arange(0, head_size, 2).float() / head_size)
    return plain / model.model.rotary_emb.inv_freq.float().cpu()


def _head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
