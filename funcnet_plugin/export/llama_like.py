"""Refuses what runtimes that know LLaMA by name compute otherwise."""

from __future__ import annotations

from transformers import PreTrainedConfig

from funcnet_plugin.errors import CheckpointError

POSITIONS = ("default", "linear", "llama3")


def check_silu_and_positions(config: PreTrainedConfig, where: str, form: str) -> None:
    """Refuse another activation, and rotary positions that a format does not hold.

    Args:
        where: the model is from, for a message.
        form: the format, as a reader calls it.

    Raises:
        CheckpointError: see above.
    """
    if config.hidden_act != "silu":
        raise CheckpointError(
            f"{where} has the activation {config.hidden_act}, and what reads {form} computes silu."
        )
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in POSITIONS:
        raise CheckpointError(
            f"{where} has rotary positions of the type {kind}; {form} is written with "
            f"{', '.join(POSITIONS[:-1])} and {POSITIONS[-1]}."
        )
