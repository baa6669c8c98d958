"""Reads the inside of one unit while a model runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.sample import Sample

RegisterHook = Callable[..., torch.utils.hooks.RemovableHandle]


def real_tokens(attention_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Tell which positions are text and which are padding, from the mask a decoder layer gets.

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


class Recorder:
    """Hooks one decoder layer and hands over one `Sample` per row of each batch.

    Args:
        unit: the unit to record.
        register_hook: `Modifier.register_hook` of llm-compressor, for instance, whose hooks are off
            while it traces the model and while it propagates the pruned outputs.
        deliver: called with each sample, in the order of the calibration data.
    """

    def __init__(
        self, unit: Unit, register_hook: RegisterHook, deliver: Callable[[Sample], None]
    ) -> None:
        self._unit = unit
        self._deliver = deliver
        self._mask_seen = False
        self._mask: Tensor | None = None
        self._shape: tuple[int, int] = (0, 0)  # batch, length
        self._entered: Tensor | None = None
        self._signals: dict[str, Tensor] = {}
        register_hook(unit.decoder_layer, self._before_layer, "forward_pre", with_kwargs=True)
        for name, signal in unit.signals.items():
            register_hook(signal.module, partial(self._after_signal, name), "forward")
        register_hook(unit.output, self._before_output, "forward_pre")

    def _before_layer(self, module, args, kwargs) -> None:
        names = list(inspect.signature(module.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        self._mask = given.get("attention_mask")
        self._entered = given["hidden_states"]
        self._shape = self._entered.shape[:2]
        self._mask_seen = True

    def _after_signal(self, name: str, module, args, output: Tensor) -> None:
        self._signals[name] = output[..., self._unit.signals[name].columns]

    def _before_output(self, module, args) -> None:
        if not self._mask_seen:
            raise CalibrationError(
                f"decoder layer {self._unit.index} is split by sequential_targets, so padding "
                "cannot be told from text; use the default targets (whole decoder layers)."
            )
        batch, length = self._shape
        inner, entered = args[0], self._entered
        signals, self._signals = self._signals, {}  # the next batch must bring its own
        real = real_tokens(self._mask, batch, length)
        for row in range(batch):
            keep = slice(None) if real is None else real[row].to(inner.device)

            def of_row(tensor: Tensor, row: int = row, keep: slice | Tensor = keep) -> Tensor:
                # OPT flattens the batch before its MLP
                return tensor.reshape(batch, length, -1)[row][keep].detach()

            self._deliver(
                Sample(
                    {name: of_row(signals[name]) for name in self._unit.signals},
                    of_row(inner),
                    of_row(entered),
                )
            )
        self._entered = None
