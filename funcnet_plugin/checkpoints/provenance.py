"""Puts together what several runs on one model did to the first source, also through checkpoints.

The block of config.json and kept_neurons.json always speak of the model that the first run began
with: its parameters, its layers, its neurons. What each run did to the model that it found stands
under `runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loguru import logger
from torch import nn

from funcnet_plugin.checkpoints import block as checkpoint
from funcnet_plugin.errors import CheckpointError

Kept = list[list[int] | None]  # per layer, None for all neurons

# What stays true of a model after a run that has nothing to say about it.
_LASTING = ("original_layers", "kept_layers", "original_widths", "kept_widths",
            "original_hidden_size", "hidden_size",
            "original_key_value_heads", "kept_key_value_heads", "kept_heads")  # fmt: skip
_PER_LAYER = ("original_widths", "kept_widths", "kept_heads")


def since_the_first_source(
    model: nn.Module, own: dict[str, Any], kept: Kept | None
) -> tuple[dict[str, Any], Kept | None]:
    """Put a run together with those before it.

    Args:
        model: after the run; its config and its files know of earlier ones.
        own: the block of this run, see `description.pruning_block`.
        kept: neurons that this run left, of those that it found; None where it cut none.

    Returns:
        block, kept: of the first source; as given if this is the first run.
    """
    earlier = getattr(model.config, checkpoint.BLOCK_KEY, None)
    if not isinstance(earlier, dict) or "parameters_before" not in earlier:
        return own, kept
    try:
        before = _kept_before(model, earlier)
        _check_widths(before, earlier, own)
    except CheckpointError as error:
        logger.warning(
            f"which neurons the earlier run kept is not known ({error}), so the report of this run "
            "counts from the model that it found."
        )
        return own, kept
    layers = own.get("kept_layers")
    block = {key: earlier[key] for key in _LASTING if key in earlier}
    if layers is not None:
        block |= {key: [earlier[key][i] for i in layers] for key in _PER_LAYER if key in earlier}
        before = None if before is None else [before[i] for i in layers]
    heads = _composed(block.get("kept_heads"), own.get("kept_heads"))
    block = own | block
    if layers is not None:
        numbers = earlier.get("kept_layers", range(own["original_layers"]))
        block["kept_layers"] = [numbers[i] for i in layers]
    for key in ("kept_widths", "hidden_size", "kept_key_value_heads"):
        if key in own:
            block[key] = own[key]
    if heads is not None:
        block["kept_heads"] = heads
    first, after = earlier["parameters_before"], own["parameters_after"]
    block |= {
        "source_model": earlier.get("source_model"),
        "parameters_before": first,
        "pruning_ratio_overall": 1 - after / first,
        "runs": [*earlier.get("runs", [earlier]), own],
    }
    return block, _composed(before, kept)


def _kept_before(model: nn.Module, earlier: dict[str, Any]) -> Kept | None:
    """Find the neurons of the first source that earlier runs left; None where they cut none.

    Raises:
        CheckpointError: the file that says so is not there.
    """
    if "original_widths" not in earlier:
        return None
    in_memory = getattr(model, "_funcnet_kept", None)
    if in_memory is not None:
        return in_memory
    return checkpoint.read_kept(getattr(model.config, "name_or_path", ""))[1]


def _check_widths(before: Kept | None, earlier: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse to count neurons of a model whose layers have other widths than the last run left.

    Raises:
        CheckpointError: they have, as in a checkpoint that was padded.
    """
    if before is None or "original_widths" not in own:
        return
    left = [
        whole if kept is None else len(kept)
        for kept, whole in zip(before, earlier["original_widths"], strict=True)
    ]
    if left != list(own["original_widths"]):
        raise CheckpointError("its layers have other widths since")


def _composed(before: Kept | None, after: Kept | None) -> Kept | None:
    if before is None or after is None:
        return after if before is None else before
    return [_picked(old, new) for old, new in zip(before, after, strict=True)]


def _picked(old: Sequence[int] | None, new: Sequence[int] | None) -> list[int] | None:
    if old is None or new is None:
        return new if old is None else old
    return [old[i] for i in new]
