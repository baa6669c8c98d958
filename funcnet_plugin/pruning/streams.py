"""The dense and the pruned model, run side by side layer by layer on the same text.

Only one copy of the weights is there: a layer is run dense, cut, and run again on what the pruned
layers before it left. Between layers the hidden states of both wait on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import out_size
from funcnet_plugin.pruning.whole_model import model_inputs

# How far an MLP's share of its layer's output may be from a multiple of what the MLP gives.
_LINEAR = 0.1
_TOKENS = 4096  # of samples that are run together


@dataclass
class _Call:
    """How the model calls a decoder layer, hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool  # whether hidden states are a keyword


@dataclass
class _Batch:
    real: Tensor  # (batch, length), bool: which tokens are text
    calls: list[_Call]  # per layer
    dense: Tensor  # (batch, length, hidden), on the CPU, what enters the next layer
    pruned: Tensor


@dataclass(frozen=True)
class Difference:
    """What a pruned layer was given and what it missed, for one batch.

    Attributes:
        h: (n_tokens, width), what entered its down projection, padding removed.
        error: (n_tokens, hidden), float32: the dense model's hidden states after the layer, less
            the pruned model's.
    """

    h: Tensor
    error: Tensor


class Streams:
    """Hidden states of the dense and of the pruned model, on the way through the layers.

    Args:
        model: still dense; run once as a whole, to see how it calls its layers.
        blocks: of all layers, in order.
        batches: of text.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[MLPBlock], batches: Iterable[dict[str, Any]]
    ) -> None:
        self._batches: list[_Batch] = []
        for ids, mask in _together(model, batches):
            calls, hidden = _calls(model, blocks, ids, mask)
            if self._batches:
                _share(calls, self._batches[-1].calls)
            self._batches.append(_Batch(mask.bool(), calls, hidden, hidden))

    @property
    def n_tokens(self) -> int:
        return sum(int(batch.real.sum()) for batch in self._batches)

    def pass_dense(self, block: MLPBlock) -> None:
        """Take the dense stream through a layer that is not cut yet."""
        for batch in self._batches:
            batch.dense = _run(block, batch.calls[block.index], batch.dense).cpu()

    def differences(self, block: MLPBlock) -> Iterator[Difference]:
        """What a layer that was cut still misses; its dense stream must be behind it."""
        for batch in self._batches:
            inner, output = _run_seeing(block, batch.calls[block.index], batch.pruned)
            real = batch.real.flatten().to(output.device)
            error = batch.dense.to(output.device).float() - output.float()
            yield Difference(inner.flatten(0, -2)[real], error.flatten(0, -2)[real])

    def pass_pruned(self, block: MLPBlock) -> None:
        """Take the pruned stream through a layer as it is now."""
        for batch in self._batches:
            batch.pruned = _run(block, batch.calls[block.index], batch.pruned).cpu()


@torch.no_grad()
def residual_gain(
    model: nn.Module, blocks: Sequence[MLPBlock], batch: dict[str, Any]
) -> float | None:
    """By what a decoder layer multiplies its MLP's output before adding it to the residual stream.

    Args:
        blocks: of all layers, in order; the first is asked.
        batch: some text.

    Returns:
        1.0 in most architectures; None where the output is not just added: behind a norm, a change
        of the down projection is not the same change of the residual stream.
    """
    ids, mask, _ = next(model_inputs(model, [batch]))
    calls, hidden = _calls(model, blocks, ids, mask)
    block = blocks[0]
    output = _run(block, calls[0], hidden).float()
    generator = torch.Generator().manual_seed(0)
    shape = (*output.shape[:-1], out_size(block.down))
    # as large as the stream, so that rounding in half precision is small beside it
    change = torch.randn(shape, generator=generator).to(output) * output.square().mean().sqrt()

    def effect(size: float) -> Tensor:
        hook = block.down.register_forward_hook(
            lambda module, args, y: y + (size * change).to(y).reshape(y.shape)
        )
        try:
            return _run(block, calls[0], hidden).float() - output
        finally:
            hook.remove()

    gain = float((effect(1.0) * change).sum() / change.square().sum())
    expected = 2.0 * gain * change
    off = (effect(2.0) - expected).norm() / expected.norm().clamp_min(1e-12)
    return gain if float(off) < _LINEAR else None


def _together(
    model: nn.Module, batches: Iterable[dict[str, Any]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """ids and mask of neighbours of one length in larger batches: oneshot's have one sample."""
    waiting: list[tuple[Tensor, Tensor]] = []

    def joined() -> tuple[Tensor, Tensor]:
        ids, mask = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        waiting.clear()
        return ids, mask

    for ids, mask, _ in model_inputs(model, batches):
        tokens = sum(other.numel() for other, _ in waiting) + ids.numel()
        if waiting and (waiting[0][0].shape[1] != ids.shape[1] or tokens > _TOKENS):
            yield joined()
        waiting.append((ids, mask))
    if waiting:
        yield joined()


class _AllSeenError(Exception):
    """The last layer was called; what the model would do with its output is not needed."""


def _calls(
    model: nn.Module, blocks: Sequence[MLPBlock], ids: Tensor, mask: Tensor
) -> tuple[list[_Call], Tensor]:
    """How the model calls each of its layers, and what enters the first."""
    calls: list[_Call] = []
    first: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_name = not args
        hidden = kwargs["hidden_states"] if by_name else args[0]
        if not calls:
            first.append(hidden.detach().cpu())
        others = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        calls.append(_Call(args[1:], others, by_name))
        if len(calls) == len(blocks):
            raise _AllSeenError

    hooks = [
        block.decoder_layer.register_forward_pre_hook(see, with_kwargs=True) for block in blocks
    ]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _AllSeenError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return calls, first[0]


def _share(calls: list[_Call], others: list[_Call]) -> None:
    """Keep equal tensors once: masks and rotary embeddings are the same for most batches."""
    for call, other in zip(calls, others, strict=True):
        call.args = tuple(map(_same, call.args, other.args))
        for key, value in call.kwargs.items():
            call.kwargs[key] = _same(value, other.kwargs.get(key))


def _same(value: Any, other: Any) -> Any:
    """`other` where it is equal to `value`."""
    if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
        return tuple(map(_same, value, other))
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        alike = value.shape == other.shape and value.device == other.device
        return other if alike and torch.equal(value, other) else value
    return value


def _run(block: MLPBlock, call: _Call, hidden: Tensor) -> Tensor:
    hidden = hidden.to(block.down.weight.device)
    if call.by_name:
        output = block.decoder_layer(*call.args, hidden_states=hidden, **call.kwargs)
    else:
        output = block.decoder_layer(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


def _run_seeing(block: MLPBlock, call: _Call, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What entered the down projection, and the layer's output."""
    seen: list[Tensor] = []
    hook = block.down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        output = _run(block, call, hidden)
    finally:
        hook.remove()
    return seen[0], output
