"""Binds an adapter to a real model, its paths and shapes checked."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

# An offload cache brings a weight onto the device for a mere look at its shape; this prevents it.
from compressed_tensors.offload import disable_onloading
from torch import nn

from funcnet_plugin.adapters.builtin import REFUSED
from funcnet_plugin.adapters.formula import departure, formula_of
from funcnet_plugin.adapters.manager import ENTRY_POINT_GROUP, get_adapters
from funcnet_plugin.adapters.mlp import MLPBlock
from funcnet_plugin.adapters.projection import KINDS, in_size, oriented, out_size
from funcnet_plugin.adapters.spec import MLPAdapter
from funcnet_plugin.errors import AdapterError


@dataclass(frozen=True)
class ModelLayout:
    """Lists all MLPs of a model, in layer order."""

    adapter: MLPAdapter
    blocks: tuple[MLPBlock, ...]

    @property
    def widths(self) -> list[int]:
        return [block.width for block in self.blocks]


def bind(model: nn.Module, *, try_mlps: bool = True) -> ModelLayout:
    """Find the adapter of a model and check it against the modules that are really there.

    Models on the meta device and offloaded ones are fine: no weights are read, but those of one
    MLP of each class when a model comes for the first time.

    Args:
        try_mlps: whether an MLP must compute what the adapter says; not where only layers count.

    Raises:
        AdapterError: no adapter for this class, a mixture of experts, a path that does not exist,
            a module or shape that is not what the adapter says, or an MLP that computes something
            else.
    """
    architecture = type(model).__name__
    adapters = get_adapters()
    if architecture in adapters:
        layout = _bind_to(adapters[architecture], model)
        if try_mlps:
            _check_formula(layout, model)
        return layout
    if architecture in REFUSED:
        raise AdapterError(f"{architecture} cannot be pruned: {REFUSED[architecture]}.")
    layout = _recognise(model, adapters, try_mlps)
    if layout is None:
        raise AdapterError(_unknown(model, architecture, adapters))
    return layout


# Models whose MLPs were tried, and by which adapter's formula.
_TRIED: WeakKeyDictionary[nn.Module, MLPAdapter] = WeakKeyDictionary()


def _check_formula(layout: ModelLayout, model: nn.Module) -> None:
    """Try one MLP of every class that there is among the layers.

    Raises:
        AdapterError: one computes something else than the adapter says.
    """
    adapter = layout.adapter
    if _TRIED.get(model) == adapter:
        return
    for block in {type(block.mlp): block for block in reversed(layout.blocks)}.values():
        what = departure(adapter, model, block.decoder_layer)
        if what is not None:
            raise AdapterError(
                f"{type(model).__name__} cannot be pruned: {block.name} has the modules of "
                f"adapter {adapter.name!r} but does not compute {formula_of(adapter)}: {what}, "
                "so something stands in between that a cut would break."
            )
    _TRIED[model] = adapter


def _bind_to(adapter: MLPAdapter, model: nn.Module) -> ModelLayout:
    architecture = type(model).__name__
    layers = _submodule(model, adapter.layers, adapter, architecture)
    blocks = tuple(_bind_block(adapter, i, layer) for i, layer in enumerate(layers))
    if not blocks:
        raise AdapterError(f"{architecture} has no decoder layers at {adapter.layers!r}.")
    return ModelLayout(adapter, blocks)


def _recognise(
    model: nn.Module, adapters: dict[str, MLPAdapter], try_mlps: bool
) -> ModelLayout | None:
    """Bind a class that nobody listed, but whose modules are those of a known one.

    The width must also stand where the known one has it in its config, or the pruned model could
    not be saved.
    """
    config = getattr(model, "config", None)
    for known in adapters.values():
        # what a bias switch means cannot be seen in the modules
        adapter = replace(
            known, name=f"like {known.name}", architectures=(type(model).__name__,), bias_key=None
        )
        try:
            layout = _bind_to(adapter, model)
            stated = [getattr(layer, adapter.width_key) for layer in config.per_layer_config]
        except (AdapterError, AttributeError):
            continue
        if stated == layout.widths:
            if try_mlps:
                _check_formula(layout, model)
            warnings.warn(
                f"no adapter names {type(model).__name__}; its modules are those of {known.name}, "
                "so it is treated like that: check a pruned model before you trust it.",
                stacklevel=3,
            )
            return layout
    return None


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
        f"entry-point group {ENTRY_POINT_GROUP!r} (docs/extend.md, 'An architecture')."
    )


def _looks_like_experts(name: str) -> bool:
    return ".experts." in name or ".router." in name


def _bind_block(adapter: MLPAdapter, index: int, layer: nn.Module) -> MLPBlock:
    where = f"{adapter.layers}.{index}"
    inside = f"{where}.{adapter.mlp}" if adapter.mlp else where
    mlp = _submodule(layer, adapter.mlp, adapter, where)
    if any(_looks_like_experts(f".{name}") for name, _ in mlp.named_parameters()):
        raise AdapterError(f"{inside} is a mixture of experts; only dense MLPs can be pruned.")
    found = {}
    for role in ("gate", "up", "down"):
        path = getattr(adapter, role)
        if path is None:
            continue
        module = _submodule(mlp, path, adapter, inside)
        if not isinstance(module, KINDS):
            raise AdapterError(
                f"adapter {adapter.name!r} expects a torch.nn.Linear at {inside}.{path}, found "
                f"{type(module).__name__}."
            )
        found[role] = module
    activation = _submodule(mlp, adapter.activation, adapter, inside)
    block = MLPBlock(
        index, inside, layer, mlp, found.get("gate"), found["up"], found["down"], adapter.fused,
        activation,
    )  # fmt: skip
    _check_shapes(block, adapter)
    return block


def _check_shapes(block: MLPBlock, adapter: MLPAdapter) -> None:
    rows = block.width * (2 if block.fused else 1)
    if any(out_size(module) != rows for module in block.inputs):
        sizes = ", ".join(str(out_size(module)) for module in block.inputs)
        raise AdapterError(
            f"{block.name}: the projections disagree about the width: {sizes} rows where "
            f"{'twice ' if block.fused else ''}the {block.width} columns of {adapter.down} were "
            "expected."
        )
    paths = [path for path in (adapter.gate, adapter.up, adapter.down) if path is not None]
    for path, module in zip(paths, block.projections, strict=True):
        shape = _shape(module)
        expected = (out_size(module), in_size(module))
        if shape is not None and shape != expected:
            raise AdapterError(
                f"{block.name}.{path}: the weight is {shape}, the module says {expected}; is it "
                "quantized or packed?"
            )


def count_parameters(model: nn.Module) -> int:
    """Count all parameters of a model, shared ones once. Weights are not read."""
    with disable_onloading():
        return sum({id(p): p.numel() for p in model.parameters()}.values())


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """Read (out, in); None where compressed-tensors keeps it packed under another name."""
    with disable_onloading():
        weight = getattr(module, "weight", None)
        is_tensor = isinstance(weight, torch.Tensor)
        return tuple(oriented(module, weight).shape) if is_tensor and weight.ndim == 2 else None


def _submodule(root: nn.Module, path: str, adapter: MLPAdapter, where: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        children = ", ".join(name for name, _ in root.named_children()) or "nothing"
        raise AdapterError(
            f"adapter {adapter.name!r} expects {path!r} in {where}, which holds {children}."
        ) from error
