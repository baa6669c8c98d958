"""Holds text as passes over a model read it: token windows in batches, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_AT_ONCE = 8  # windows of one batch


@dataclass(frozen=True)
class Text:
    """Holds the text of a run, or a part of it: calibration data, or what the model wrote.

    Attributes:
        batches: `input_ids` and, where there is padding, `attention_mask`, (batch, length), int64,
            on the CPU.
        share: what it counts of all text that a run reads, in (0, 1].
        per_sample: how many windows in a row belong to one calibration sample.
        may_join: whether a pass may put batches together, as it likes.
        may_pad: whether it may do so with samples of different lengths.
    """

    batches: tuple[Mapping[str, Tensor], ...]
    share: float = 1.0
    per_sample: int = 1
    may_join: bool = False
    may_pad: bool = False

    @classmethod
    def read(cls, batches: Iterable[Mapping[str, Tensor]]) -> Text:
        """Read all batches of a loader, and keep what a model is called with."""
        names = ("input_ids", "attention_mask")
        return cls(tuple({n: b[n].cpu() for n in names if b.get(n) is not None} for b in batches))

    @classmethod
    def of_windows(cls, windows: Tensor, share: float = 1.0, per_sample: int = 1) -> Text:
        """Put windows without padding, (n_windows, window), int64, into batches."""
        parts = windows.split(_AT_ONCE)
        batches = tuple({"input_ids": p, "attention_mask": torch.ones_like(p)} for p in parts)
        return cls(batches, share, per_sample, may_join=True)

    @cached_property
    def samples(self) -> list[list[int]]:
        """List the tokens of each sample, without padding."""
        found = []
        for batch in self.batches:
            ids = batch["input_ids"]
            mask = batch.get("attention_mask")
            if mask is None or mask.ndim != 2:  # a mask of pairs says nothing of padding
                mask = torch.ones_like(ids)
            mask = mask.bool()
            found += [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        return found

    @property
    def n_tokens(self) -> int:
        """Count its tokens, padding left out."""
        return sum(map(len, self.samples))

    @property
    def window(self) -> int:
        """Average the lengths of its samples."""
        return round(self.n_tokens / max(len(self.samples), 1))

    def fingerprint(self) -> str:
        """Tell texts apart, the order of samples included."""
        digest = hashlib.sha256()
        for batch in self.batches:
            for name in sorted(batch):
                digest.update(name.encode())
                digest.update(batch[name].to(torch.int64).numpy().tobytes())
        return digest.hexdigest()
