"""Checks the other modifiers of a recipe against the cut.

What stands before it must leave the neurons alone, what follows it must be able to work on the
widths to come. Otherwise they fail when the whole pruning pass is over, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressed_tensors.transform.utils.hadamard import is_pow2
from compressed_tensors.utils import is_match
from llmcompressor.core import State
from llmcompressor.modifiers import Modifier
from torch import nn

from funcnet_plugin.adapters import Unit, bind
from funcnet_plugin.adapters.projection import out_size
from funcnet_plugin.errors import RecipeError

_INPUT, _OUTPUT = ("input", "weight_input"), ("output", "weight_output")
SPARSE = ("sparsity", "mask_structure")  # fields of modifiers that set weights to zero


@dataclass(frozen=True)
class _Demand:
    """Says what a modifier asks of the number of neurons of an MLP.

    Attributes:
        path: of the projection that it works on.
        what: it does there, for a message.
        fits: whether a width will do.
        advice: what to change in the recipe.
    """

    path: str
    what: str
    fits: Callable[[int], bool]
    advice: str


def check_before(
    modifiers: Sequence[Modifier],
    units: Sequence[Unit],
    model: nn.Module,
    *,
    measured_ahead: bool,
) -> None:
    """Refuse what changes the neurons before they are cut.

    Args:
        modifiers: those before the pruning modifier.
        units: the MLPs that will be cut.
        model: they are in; may be on the meta device.
        measured_ahead: whether pruning measures the model before these modifiers change it.

    Raises:
        RecipeError: one quantizes, rotates neurons, makes weights sparse, or turns the hidden
            states once they were measured.
    """
    for modifier in modifiers:
        name = type(modifier).__name__
        if hasattr(modifier, "resolved_config"):
            raise RecipeError(
                f"{name} is a quantization modifier and stands before the pruning modifier in the "
                "recipe; its scales would belong to weights that are cut afterwards, so put "
                "pruning first."
            )
        if all(hasattr(modifier, field) for field in SPARSE):
            raise RecipeError(
                f"{name} sets weights to zero before the pruning modifier cuts and repairs them, "
                "which fills the zeros again; put pruning first."
            )
        for unit in units:
            for path, kind, _ in _rotations(modifier, unit, model):
                raise RecipeError(
                    f"{name} rotates the neurons of {path} ({kind}) before the pruning modifier "
                    "cuts them, and what is cut would no longer be neurons; put pruning first, or "
                    f"leave {_without(modifier)} out."
                )
        if measured_ahead and "transform_config" in type(modifier).model_fields:
            raise RecipeError(
                f"{name} turns the hidden states after the pruning modifier has measured the whole "
                "model for its scorer or its repair; put pruning first."
            )


def check_after(
    modifiers: Sequence[Modifier],
    units: Sequence[Unit],
    model: nn.Module,
    possible_widths: Callable[[Unit], Sequence[int]],
) -> None:
    """Refuse what cannot work on the widths that pruning leaves.

    Args:
        modifiers: those that follow the pruning modifier.
        units: the MLPs that will be cut.
        possible_widths: the widths that an MLP may end up with.

    Raises:
        RecipeError: a width does not fit a group, a block, or a rotation.
    """
    for modifier in modifiers:
        for unit in units:
            for demand in _demands(modifier, unit, model):
                bad = [w for w in possible_widths(unit) if not demand.fits(w)]
                if bad:
                    raise RecipeError(_misfit(modifier, unit, demand, bad))


def _demands(modifier: Modifier, unit: Unit, model: nn.Module) -> Iterator[_Demand]:
    name = type(modifier).__name__
    for path, what, size in _divisors(modifier, unit):
        bypassed = getattr(modifier, "bypass_divisibility_checks", False)
        if unit.width % size and not bypassed and what == "groups":
            raise RecipeError(
                f"{name} checks its groups of {size} before anything is pruned, and {path} is "
                f"{unit.width} wide then; set bypass_divisibility_checks: true in it (what "
                "pruning leaves is checked here)."
            )
        if bypassed and what == "blocks":
            continue  # llm-compressor pads them; whether the runtime does is the user's to know
        yield _Demand(
            path, f"quantizes {path} in {what} of {size}", lambda w, s=size: w % s == 0,
            f"set align: {size} in the pruning modifier, or another pruning_ratio, or a group size "
            "that divides",
        )  # fmt: skip
    path = unit.path_of(unit.output)
    for structure, size in _patterns(modifier, path, unit.output):
        yield _Demand(
            path, f"makes {path} {structure} sparse", lambda w, s=size: w % s == 0,
            f"set align: {size} in the pruning modifier, or another pruning_ratio, or leave the "
            "down projection out of it, at",
        )  # fmt: skip
    for path, kind, rotated in _rotations(modifier, unit, model):
        block_size, fused = rotated
        yield _Demand(
            path,
            f"rotates the neurons of {path} by a {kind} matrix",
            lambda w, k=kind, b=block_size, f=fused: _rotatable(k, w * f, b),
            "take another pruning_ratio or align, transform_type: random-matrix, or a "
            "transform_block_size that divides",
        )


def check_inputs(
    modifiers: Sequence[Modifier],
    inputs: Mapping[str, tuple[nn.Module, int]],
    what: str,
    advice: str,
) -> None:
    """Refuse what cannot work on the inputs that a cut leaves.

    Args:
        modifiers: those that follow.
        inputs: path -> a module, and how many inputs it will have.
        what: leaves them.
        advice: which field to set, a size left open with {}.

    Raises:
        RecipeError: they do not fit a group, a block or a pattern.
    """
    for modifier in modifiers:
        for path, (module, width) in inputs.items():
            of_columns = _of_columns(modifier, path, module)
            patterns = ((f"patterns {s}", n) for s, n in _patterns(modifier, path, module))
            for kind, size in (*of_columns, *patterns):
                if width % size:
                    raise RecipeError(
                        f"{type(modifier).__name__} takes {path} in {kind} of {size}, which do not "
                        f"divide the {width} inputs that {what} leaves; set "
                        f"{advice.format(size)}, or another size."
                    )


def divisors(modifiers: Sequence[Modifier], model: nn.Module) -> set[int]:
    """Find the sizes of groups, blocks and patterns that should divide the widths of a model."""
    found = set()
    for modifier in modifiers:
        for unit in bind(model, try_mlps=False).blocks:
            found |= {size for _, _, size in _divisors(modifier, unit)}
            path = unit.path_of(unit.output)
            found |= {size for _, size in _patterns(modifier, path, unit.output)}
    return found


def _divisors(modifier: Modifier, unit: Unit) -> Iterator[tuple[str, str, int]]:
    """Find path, kind and size of what must divide the width, by a quantization modifier."""
    for module in unit.projections:
        path = unit.path_of(module)
        found = _of_columns if module is unit.output else _of_rows
        yield from ((path, what, size) for what, size in found(modifier, path, module))


def _of_columns(modifier: Modifier, path: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    for group in _schemes(modifier, path, module):
        _, columns = getattr(group.weights, "block_structure", None) or (None, None)
        sizes = (
            ("groups", getattr(group.weights, "group_size", None)),
            ("blocks", columns),
            ("groups of activations", _group(group.input_activations)),
        )
        yield from ((what, size) for what, size in sizes if size and size > 0)


def _of_rows(modifier: Modifier, path: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    for group in _schemes(modifier, path, module):
        rows, _ = getattr(group.weights, "block_structure", None) or (None, None)
        sizes = (("blocks", rows), ("groups of activations", _group(group.output_activations)))
        yield from ((what, size) for what, size in sizes if size and size > 0)


def _schemes(modifier: Modifier, path: str, module: nn.Module) -> Iterator[Any]:
    """Find how a quantization modifier quantizes a module."""
    resolved = getattr(modifier, "resolved_config", None)
    for group in getattr(resolved, "config_groups", {}).values():
        if is_match(path, module, group.targets, modifier.ignore or ()):
            yield group


def _patterns(modifier: Modifier, path: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    """Find the pattern, and its length, by which a modifier zeroes n of every m inputs."""
    structure = str(getattr(modifier, "mask_structure", None) or "")
    found = re.fullmatch(r"\d+:(\d+)", structure)
    targets = getattr(modifier, "targets", None) or ["Linear"]
    ignore = getattr(modifier, "ignore", None) or ()
    if found and int(found[1]) and is_match(path, module, targets, ignore):
        yield structure, int(found[1])


def _group(args: Any) -> int | None:
    return getattr(args, "group_size", None)


def _rotations(
    modifier: Modifier, unit: Unit, model: nn.Module
) -> Iterator[tuple[str, str, tuple[int | None, int]]]:
    """Find the projections whose neurons are rotated.

    Yields:
        path, kind of the matrix, its block size if it has blocks and how many rows a neuron has.
    """
    config = _transforms(modifier, model)
    for scheme in getattr(config, "config_groups", {}).values():
        for args in scheme.apply:
            location = getattr(args.location, "value", args.location)
            for module in unit.projections:
                side = _INPUT if module is unit.output else _OUTPUT
                path = unit.path_of(module)
                if location in side and is_match(path, module, args.targets, args.ignore or ()):
                    rows = 1 if module is unit.output else out_size(module) // unit.width
                    yield path, scheme.type, (scheme.head_dim, rows)


def _transforms(modifier: Modifier, model: nn.Module) -> Any | None:
    """Find the transforms of a modifier, also before it is initialized; None if it has none."""
    if "transform_config" not in type(modifier).model_fields:
        return None
    if modifier.transform_config is not None:
        return modifier.transform_config
    probe = modifier.model_copy(deep=True)
    try:
        probe.on_initialize(State(model=model))
    except Exception:  # of the host: it says the same when it initializes the modifier itself
        return None
    return probe.transform_config


def _rotatable(kind: str, width: int, block_size: int | None) -> bool:
    if block_size is not None and width % block_size:
        return False
    size = block_size or width
    if kind == "hadamard":
        return is_pow2(size)
    return kind != "random-hadamard" or _has_hadamard(size)


def _has_hadamard(size: int) -> bool:
    """Tell whether compressed-tensors knows a Hadamard matrix of the size: one it has, doubled."""
    import torch
    from compressed_tensors.transform.utils.hadamard import _fetch_hadamard_divisor

    return _fetch_hadamard_divisor(size, torch.float32) is not None


def _without(modifier: Modifier) -> str:
    rotations = [str(getattr(r, "value", r)) for r in getattr(modifier, "rotations", ())]
    return "R4" if "R4" in rotations else "the MLPs' projections"


def _misfit(modifier: Any, unit: Unit, demand: _Demand, widths: Sequence[int]) -> str:
    where, first = f"{type(modifier).__name__} {demand.what}", widths[0]
    if list(widths) == [unit.width]:
        return (
            f"{where}, which does not fit its width {unit.width}; choose another size, or put "
            f"re:.*{demand.path.rsplit('.', 1)[-1]} into the modifier's ignore list."
        )
    below = next((w for w in range(first - 1, 0, -1) if demand.fits(w)), None)
    above = next((w for w in range(first + 1, unit.width + 1) if demand.fits(w)), None)
    nearest = " and ".join(str(w) for w in (below, above) if w is not None) or "none"
    return (
        f"{where}, which does not fit the width {first} that pruning may leave (nearest that work: "
        f"{nearest}); {demand.advice} {first}."
    )
