"""Reads the inside of one MLP during llm-compressor's calibration passes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.pruning.collect import MLPSample

RegisterHook = Callable[..., torch.utils.hooks.RemovableHandle]


def real_tokens(attention_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Which positions are text and which are padding, from the mask a decoder layer gets.

    Args:
        attention_mask: None (no padding), (batch, length), or (batch or 1, 1, length, length),
            boolean (True attends) or additive (0 attends). A real token attends to itself, a
            padded position is masked for everybody: the diagonal tells, also for sliding windows
            and for left and right padding.

    Returns:
        (batch, length), bool; None where nothing is padded.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim not in (2, 4):
        raise CalibrationError(
            "the attention mask of this attn_implementation does not show padding; load the model "
            "with attn_implementation='sdpa' or 'eager'."
        )
    if attention_mask.ndim == 4:
        # keys may be longer than queries when a cache is in use; calibration starts at position 0
        mask = attention_mask[:, 0, :, :length].diagonal(dim1=-2, dim2=-1)
        real = mask if mask.dtype == torch.bool else mask == 0
    else:
        real = attention_mask.bool()
    return real.expand(batch, length)


class MLPRecorder:
    """Hooks on one decoder layer; hands over one `MLPSample` per row of each batch.

    Args:
        block: the layer to record.
        register_hook: `Modifier.register_hook`, whose hooks are off while llm-compressor traces
            the model and while it propagates the pruned outputs.
        deliver: called with each sample, in the order of the calibration data.
    """

    def __init__(
        self,
        block: MLPBlock,
        register_hook: RegisterHook,
        deliver: Callable[[MLPSample], None],
    ) -> None:
        self._block = block
        self._deliver = deliver
        self._mask_seen = False
        self._mask: Tensor | None = None
        self._shape: tuple[int, int] = (0, 0)  # batch, length
        self._entered: Tensor | None = None
        self._act: Tensor | None = None
        self._up: Tensor | None = None
        register_hook(block.decoder_layer, self._before_layer, "forward_pre", with_kwargs=True)
        register_hook(block.activation, self._after_activation, "forward")
        if block.gated:
            register_hook(block.up, self._after_up, "forward")
        register_hook(block.down, self._before_down, "forward_pre")

    def _before_layer(self, module, args, kwargs) -> None:
        names = list(inspect.signature(module.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        self._mask = given.get("attention_mask")
        self._entered = given["hidden_states"]
        self._shape = self._entered.shape[:2]
        self._mask_seen = True

    def _after_activation(self, module, args, output: Tensor) -> None:
        self._act = output

    def _after_up(self, module, args, output: Tensor) -> None:
        self._up = output[..., self._block.width :] if self._block.fused else output

    def _before_down(self, module, args) -> None:
        if not self._mask_seen:
            raise CalibrationError(
                f"decoder layer {self._block.index} is split by sequential_targets, so padding "
                "cannot be told from text; use the default targets (whole decoder layers)."
            )
        batch, length = self._shape
        hidden = args[0]
        act, up = self._act, self._up
        self._act = self._up = None  # the next batch must bring its own
        real = real_tokens(self._mask, batch, length)
        for row in range(batch):
            keep = slice(None) if real is None else real[row].to(hidden.device)
            inside = (act, up if self._block.gated else None, hidden, self._entered)
            self._deliver(
                MLPSample(
                    *(
                        # OPT flattens the batch before its MLP
                        t if t is None else t.reshape(batch, length, -1)[row][keep].detach()
                        for t in inside
                    )
                )
            )
        self._entered = None
