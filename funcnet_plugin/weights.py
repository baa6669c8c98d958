"""What a checkpoint's files hold, read from their headers, against what its config says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.inspect import build_on_meta


def check_shapes(directory: Path, config: PreTrainedConfig) -> None:
    """Compare every tensor of a checkpoint with the module that will hold it.

    No weights are read. Tensors of other names (packed by a quantization, or in another format)
    are left to the loader.

    Raises:
        CheckpointError: there are no weights, a shape differs, a width is not a positive integer, a
            file is damaged.
    """
    if not any(path.suffix in (".safetensors", ".bin") for path in directory.iterdir()):
        raise CheckpointError(f"{directory} has no weights: no .safetensors and no .bin file.")
    if getattr(config, "auto_map", None):
        return  # its own code decides about the shapes
    model = build_on_meta(config, directory)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, found in tensor_shapes(directory).items():
        if expected.get(name, found) != found:
            raise CheckpointError(
                f"{directory}: config and weights disagree: {name} is {found} in the file and "
                f"{expected[name]} by config.json; restore the config.json that was saved with "
                "these weights."
            )


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the safetensors files; empty for other formats.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, not a dict
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return shapes


def _files(directory: Path) -> Iterator[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        yield from (directory / name for name in names)
    elif (directory / "model.safetensors").exists():
        yield directory / "model.safetensors"
