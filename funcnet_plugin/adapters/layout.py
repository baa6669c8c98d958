"""An adapter bound to a real model, its paths and shapes checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# An offload cache brings a weight onto the device for a mere look at its shape; this prevents it.
from compressed_tensors.offload import disable_onloading
from torch import nn

from funcnet_plugin.adapters.manager import ENTRY_POINT_GROUP, get_adapters
from funcnet_plugin.adapters.spec import MLPAdapter
from funcnet_plugin.errors import AdapterError


@dataclass(frozen=True)
class MLPBlock:
    """The MLP of one decoder layer. `width` is a live reading: it follows the surgery."""

    index: int
    name: str  # module path of the MLP in the model
    decoder_layer: nn.Module
    mlp: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    activation: nn.Module

    @property
    def width(self) -> int:
        return self.down.in_features

    @property
    def parameters_per_neuron(self) -> int:
        """Parameters that go with one neuron: rows of gate and up (and their biases), a column of
        down."""
        rows = sum(
            linear.in_features + (linear.bias is not None) for linear in (self.gate, self.up)
        )
        return rows + self.down.out_features

    @property
    def parameters(self) -> int:
        """All parameters of gate, up and down, biases included."""
        with disable_onloading():
            linears = (self.gate, self.up, self.down)
            return sum(p.numel() for linear in linears for p in linear.parameters())


@dataclass(frozen=True)
class ModelLayout:
    """All MLPs of a model, in layer order."""

    adapter: MLPAdapter
    blocks: tuple[MLPBlock, ...]

    @property
    def widths(self) -> list[int]:
        return [block.width for block in self.blocks]


def bind(model: nn.Module) -> ModelLayout:
    """Find the adapter of a model and check it against the modules that are really there.

    Weights are not read, so models on the meta device and offloaded ones are fine.

    Raises:
        AdapterError: no adapter for this class, a mixture of experts, a path that does not exist,
            or a module or shape that is not what the adapter says.
    """
    architecture = type(model).__name__
    adapters = get_adapters()
    if architecture not in adapters:
        raise AdapterError(_unknown(model, architecture, adapters))
    adapter = adapters[architecture]
    layers = _submodule(model, adapter.layers, adapter, architecture)
    blocks = tuple(_bind_block(adapter, i, layer) for i, layer in enumerate(layers))
    if not blocks:
        raise AdapterError(f"{architecture} has no decoder layers at {adapter.layers!r}.")
    return ModelLayout(adapter, blocks)


def _unknown(model: nn.Module, architecture: str, adapters: dict[str, MLPAdapter]) -> str:
    if any(_looks_like_experts(name) for name, _ in model.named_parameters()):
        return (
            f"{architecture} is a mixture of experts: its expert weights are routed per token and "
            "have no single set of neurons to cut; only dense MLPs are supported, so choose a "
            "dense model."
        )
    return (
        f"no adapter for the architecture {architecture!r}; known: {', '.join(sorted(adapters))}. "
        "To add one, return an MLPAdapter from a funcnet_adapters hook and list the module in the "
        f"entry-point group {ENTRY_POINT_GROUP!r} (README, section 'Adapters')."
    )


def _looks_like_experts(name: str) -> bool:
    return ".experts." in name or ".router." in name


def _bind_block(adapter: MLPAdapter, index: int, layer: nn.Module) -> MLPBlock:
    where = f"{adapter.layers}.{index}"
    mlp = _submodule(layer, adapter.mlp, adapter, where)
    if any(_looks_like_experts(f".{name}") for name, _ in mlp.named_parameters()):
        raise AdapterError(
            f"{where}.{adapter.mlp} is a mixture of experts; only dense MLPs can be pruned."
        )
    linears = {}
    for role in ("gate", "up", "down"):
        path = getattr(adapter, role)
        linear = _submodule(mlp, path, adapter, f"{where}.{adapter.mlp}")
        if not isinstance(linear, nn.Linear):
            raise AdapterError(
                f"adapter {adapter.name!r} expects a torch.nn.Linear at {where}.{adapter.mlp}."
                f"{path}, found {type(linear).__name__}."
            )
        linears[role] = linear
    gate, up, down = linears["gate"], linears["up"], linears["down"]
    if not gate.out_features == up.out_features == down.in_features:
        raise AdapterError(
            f"{where}.{adapter.mlp}: gate, up and down disagree about the width: "
            f"{gate.out_features}, {up.out_features} and {down.in_features}."
        )
    for path, linear in zip(
        (adapter.gate, adapter.up, adapter.down), linears.values(), strict=True
    ):
        shape = _shape(linear)
        if shape is not None and shape != (linear.out_features, linear.in_features):
            raise AdapterError(
                f"{where}.{adapter.mlp}.{path}: the weight is {shape}, the module says "
                f"({linear.out_features}, {linear.in_features}); is it quantized or packed?"
            )
    activation = _submodule(mlp, adapter.activation, adapter, f"{where}.{adapter.mlp}")
    return MLPBlock(index, f"{where}.{adapter.mlp}", layer, mlp, gate, up, down, activation)


def count_parameters(model: nn.Module) -> int:
    """All parameters of a model, shared ones once. Weights are not read."""
    with disable_onloading():
        return sum({id(p): p.numel() for p in model.parameters()}.values())


def _shape(linear: nn.Linear) -> tuple[int, ...] | None:
    """None where compressed-tensors keeps the weight packed under another name."""
    with disable_onloading():
        weight = getattr(linear, "weight", None)
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else None


def _submodule(root: nn.Module, path: str, adapter: MLPAdapter, where: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        children = ", ".join(name for name, _ in root.named_children()) or "nothing"
        raise AdapterError(
            f"adapter {adapter.name!r} expects {path!r} in {where}, which holds {children}."
        ) from error
