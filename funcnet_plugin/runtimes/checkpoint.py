"""Reads what matters to a runtime from a checkpoint, without its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import read_config
from funcnet_plugin.checkpoints.loading import build_on_meta, read_model_config


@dataclass(frozen=True)
class Checkpoint:
    """Describes a checkpoint as runtimes see it.

    Attributes:
        source: its directory.
        model: on the meta device, in full precision.
        widths: neurons of the MLP, per layer.
        quantization: how its weights are kept, as its config.json says; None in full precision.
        brings_code: whether code lies beside it that builds it, as `remote-code` writes.
    """

    source: Path
    model: PreTrainedModel
    widths: tuple[int, ...]
    quantization: dict[str, Any] | None
    brings_code: bool

    @property
    def architecture(self) -> str:
        return type(self.model).__name__

    @property
    def irregular(self) -> bool:
        """Tell whether layers have several widths."""
        return len(set(self.widths)) > 1

    @property
    def of_this_package(self) -> bool:
        """Tell whether transformers has no such architecture without this package."""
        return type(self.model).__module__.startswith("funcnet_plugin.")

    @property
    def scheme(self) -> str | None:
        """Name the quantization: bits of weights and activations, and the size of a group."""
        if self.quantization is None:
            return None
        groups = self.quantization.get("config_groups")
        if not groups:
            return str(self.quantization.get("quant_method"))
        return ", ".join(dict.fromkeys(_scheme(group) for group in groups.values()))

    @property
    def group(self) -> int | None:
        """Give the most inputs that share a scale along a row; None if none do."""
        groups = (self.quantization or {}).get("config_groups") or {}
        sizes = [(group.get("weights") or {}).get("group_size") or 0 for group in groups.values()]
        return max(sizes, default=0) or None


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read config.json and build the model without weights.

    Raises:
        CheckpointError: there is no checkpoint, or not of a causal language model.
        AdapterError: no adapter knows where its MLPs are.
    """
    brings_code = "auto_map" in read_config(source)
    config = read_model_config(source)
    found = getattr(config, "quantization_config", None)
    if found is not None and not isinstance(found, dict):
        found = found.to_dict()
    plain = copy.deepcopy(config)
    if found is not None:
        del plain.quantization_config
    model = build_on_meta(plain, source)
    widths = tuple(bind(model, try_mlps=False).widths)
    return Checkpoint(Path(source), model, widths, found, brings_code)


def _scheme(group: dict[str, Any]) -> str:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    said = "".join(
        f"{letter}{'fp' if kind.get('type') == 'float' else ''}{kind.get('num_bits', 16)}"
        for letter, kind in (("W", weights), ("A", inputs))
    )
    size = weights.get("group_size")
    return f"{said} in groups of {size}" if size and size > 0 else said
