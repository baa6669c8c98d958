"""Does what all formats share."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from funcnet_plugin.checkpoints.block import read_config, rope_for_older_readers, update_json
from funcnet_plugin.checkpoints.loading import read_model_config
from funcnet_plugin.checkpoints.per_layer import enable
from funcnet_plugin.checkpoints.saving import check_generation_file, generation_config_as_it_came
from funcnet_plugin.checkpoints.weights import check_weights
from funcnet_plugin.errors import CheckpointError

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def load_full_precision(source: Path) -> PreTrainedModel:
    """Load the model of a checkpoint, in its own dtype.

    Raises:
        CheckpointError: not a checkpoint, or quantized.
    """
    if "quantization_config" in read_config(source):
        raise CheckpointError(
            f"{source} is quantized; export the full-precision checkpoint, and quantize that."
        )
    check_weights(source, read_model_config(source))
    enable(PreTrainedModel)
    check_generation_file(source)
    return AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)


def save(model: PreTrainedModel, out: Path) -> None:
    """Save a model with whatever generation config it came with, for older readers, too."""
    with generation_config_as_it_came(model, out):
        model.save_pretrained(out)
    update_json(out / "config.json", rope_for_older_readers(model.config.to_dict()))


def copy_side_files(source: Path, out: Path) -> None:
    """Copy everything but weights and what `out` has: tokenizer, generation config, card."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS) and not (out / path.name).exists():
            shutil.copy2(path, out / path.name)
