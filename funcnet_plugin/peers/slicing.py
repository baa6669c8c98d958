"""Rotates the hidden states of a LLaMA to their principal axes and deletes the last ones.

This is SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024).

RMSNorm without weights commutes with rotations, so the hidden states may have other axes in front
of every block: Q_p, the eigenvectors of ``C_p = sum x x'`` over calibration tokens, x the normed
input of block p. What reads the hidden states is multiplied by Q_p, what writes them by the next
block's Q_{p+1}', and the residual connection by ``Q_p' Q_{p+1}`` (the shortcut). Then every Q_p is
cut to its first n columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from funcnet_plugin.measure.finite import is_finite, not_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.passes import model_inputs
from funcnet_plugin.measure.text import Text
from funcnet_plugin.models.sliced_llama.modeling import make_sliced


def fuse_norms(model: nn.Module) -> None:
    """Move the weights of all norms into what reads them; untie the head. The output stays.

    Args:
        model: a LlamaForCausalLM, changed in place.
    """
    with torch.no_grad():
        head = model.lm_head
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        model.config.tie_word_embeddings = False
        for norm, readers in zip(norms(model), _readers(model), strict=True):
            for linear in readers:
                linear.weight = _parameter(
                    linear.weight.double() * norm.weight.double(), linear.weight
                )
            norm.weight = _parameter(torch.ones_like(norm.weight), norm.weight)


def norms(model: nn.Module) -> list[nn.Module]:
    """List the norms in front of all blocks: attention and MLP of each layer, the last one."""
    inner = [n for x in model.model.layers for n in (x.input_layernorm, x.post_attention_layernorm)]
    return [*inner, model.model.norm]


def _readers(model: nn.Module) -> list[tuple[nn.Module, ...]]:
    """List what reads the hidden states behind each of `norms`."""
    found: list[tuple[nn.Module, ...]] = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found.append((attention.q_proj, attention.k_proj, attention.v_proj))
        found.append((mlp.gate_proj, mlp.up_proj))
    return [*found, (model.lm_head,)]


@torch.no_grad()
def principal_axes(model: nn.Module, text: Text) -> list[Tensor]:
    """Find the eigenvectors of the second moment behind each of `norms`, the largest first.

    Args:
        model: with fused norms, whole, in memory.
        text: the calibration data; padding is left out.

    Returns:
        per norm (hidden, hidden), float64, columns are axes.
    """
    found = norms(model)
    hidden = model.config.hidden_size
    totals = [torch.zeros(hidden, hidden, dtype=torch.float64) for _ in found]
    mask = torch.empty(0)
    finite = True

    def watch(p: int):
        def hook(norm: nn.Module, args: tuple, output: Tensor) -> None:
            nonlocal finite
            x = output[mask.bool()].double()
            finite = finite and is_finite(x)  # the totals of a 7B model are nine gigabytes to read
            totals[p] += (x.T @ x).cpu()

        return hook

    with hooked(norm.register_forward_hook(watch(p)) for p, norm in enumerate(found)):
        for ids, mask, _ in model_inputs(model, text.batches, "principal axes"):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            if not finite:
                raise not_finite(model, ids, mask, "the principal axes of hidden states")
    return [torch.linalg.eigh(total).eigenvectors.flip(1) for total in totals]


def parameters_after(model: nn.Module, size: int) -> int:
    """Count the parameters of a model whose hidden states are cut to `size`.

    Shortcuts and a head of its own are included.
    """
    config = model.config
    hidden, n_layers = config.hidden_size, len(model.model.layers)
    linear = sum(
        p.numel()
        for layer in model.model.layers
        for p in layer.parameters()
        if p.ndim == 2  # each has one side of the hidden size
    )
    wide = sum(  # biases of what does not write the hidden states
        m.bias.numel() for group in _readers(model) for m in group if m.bias is not None
    )
    narrow = sum(m.bias is not None for m in _writers(model))
    per_axis = 2 * config.vocab_size + linear // hidden + 2 * n_layers + 1 + narrow
    return per_axis * size + wide + 2 * n_layers * size**2


def _writers(model: nn.Module) -> list[nn.Module]:
    return [m for x in model.model.layers for m in (x.self_attn.o_proj, x.mlp.down_proj)]


@torch.no_grad()
def slice_hidden(model: nn.Module, axes: list[Tensor], size: int) -> None:
    """Rotate and cut.

    Args:
        model: a LlamaForCausalLM with fused norms, changed in place.
        axes: of `principal_axes`.
        size: hidden size that is left.
    """
    hidden = model.config.hidden_size
    Q = [axis[:, :size].to(model.device) for axis in axes]
    embedding = model.model.embed_tokens
    embedding.weight = _parameter(embedding.weight.double() @ Q[0], embedding.weight)
    embedding.embedding_dim = size
    for p, (norm, readers) in enumerate(zip(norms(model), _readers(model), strict=True)):
        for linear in readers:
            linear.weight = _parameter(linear.weight.double() @ Q[p], linear.weight)
            linear.in_features = size
        # A stock norm takes the mean over what is left, the paper's over what was.
        norm.weight = _parameter(torch.full((size,), (hidden / size) ** 0.5), norm.weight)
        norm.variance_epsilon = model.config.rms_norm_eps * hidden / size
    for p, linear in enumerate(_writers(model), start=1):
        linear.weight = _parameter(Q[p].T @ linear.weight.double(), linear.weight)
        linear.out_features = size
        if linear.bias is not None:
            linear.bias = _parameter(linear.bias.double() @ Q[p], linear.bias)
    model.config.rms_norm_eps *= hidden / size
    make_sliced(model, size)
    for i, layer in enumerate(model.model.layers):
        for shortcut, p in ((layer.attn_shortcut, 2 * i), (layer.mlp_shortcut, 2 * i + 1)):
            shortcut.weight = _parameter((Q[p].T @ Q[p + 1]).T, embedding.weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    value = value.to(device=like.device, dtype=like.dtype).contiguous()
    return nn.Parameter(value, requires_grad=like.requires_grad)
