"""Makes sure that llm-compressor's pipeline computes what the model computes.

The sequential pipeline runs a traced copy of the model's forward pass. What the tracing gets wrong
is wrong in silence: in Mistral, Phi-3 and Starcoder2 it lost the attention mask (docs/upstream.md),
so each token saw later ones, and padding counted as text. So two things are done to every traced
pass from the moment that one of our modifiers is initialized, also to those of the modifiers that
follow it in the recipe:

* mask functions become one step of the traced graph, however the model's code calls them;
* the traced pass and the model's own are compared on the first samples, and a run whose two differ
  is refused before anything is calibrated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from compressed_tensors.utils import match_named_modules
from llmcompressor.modifiers.utils.hooks import HooksMixin
from llmcompressor.pipelines.sequential import ast_helpers, helpers, pipeline
from llmcompressor.utils.dev import get_main_device
from llmcompressor.utils.helpers import calibration_forward_context
from torch import Tensor, nn
from torch.fx import Proxy

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.hooks import hooked

_MASKS = "transformers.masking_utils"
_SAMPLES = 4  # that are compared: enough to hold some padding, where there is any
# Mean over tokens of how far two hidden states of a layer are apart, as a share of their size. Both
# passes do the same steps, with eager attention, so more than rounding is a mistake.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_TOLERANCE_HALF = 2e-2


def trust_no_trace() -> None:
    """Wrap the tracing of llm-compressor's sequential pipeline; calling twice is harmless."""
    trace = pipeline.trace_subgraphs
    if getattr(trace, "_funcnet", False):
        return
    signature = inspect.signature(trace)

    @wraps(trace)
    def traced(*args: Any, **kwargs: Any) -> list[Any]:
        given = signature.bind(*args, **kwargs).arguments
        model, targets = given["model"], given["sequential_targets"]
        layers = {name: m for name, m in match_named_modules(model, targets)}
        with _masks_as_steps(helpers.get_sequential_ancestors(model, set(layers.values()))):
            subgraphs = trace(*args, **kwargs)
        check_trace(model, layers, subgraphs, given["sample_input"])
        return subgraphs

    traced._funcnet = True
    pipeline.trace_subgraphs = traced


# -- masks -----------------------------------------------------------------------------------------


@contextmanager
def _masks_as_steps(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make mask functions called with traced values steps of the graph, while this is open.

    The host does so where the code calls them by their own names. Called by another name
    (`mask_function = create_causal_mask if ... else ...`) they are run while the model is traced,
    see no real mask, and give none.

    Args:
        modules: those whose forward functions are traced.
    """
    spaces = {}
    for module in modules:
        space = getattr(ast_helpers.get_unwrapped_forward(module), "__globals__", {})
        spaces[id(space)] = space
    with ExitStack() as undo:
        for space in spaces.values():
            for name, value in list(space.items()):
                if isinstance(value, FunctionType) and value.__module__ == _MASKS:
                    undo.callback(space.__setitem__, name, value)
                    space[name] = _as_step(value)
        yield


def _as_step(function: FunctionType) -> FunctionType:
    @wraps(function)  # the host looks for its name
    def called(*args: Any, **kwargs: Any) -> Any:
        traced = [value for value in (*args, *kwargs.values()) if isinstance(value, Proxy)]
        if not traced:
            return function(*args, **kwargs)
        # The graph cannot hold a config: written out and read again, it loses what is not saved,
        # the kind of attention for instance.
        config = kwargs.pop("config", None)
        step = function if config is None else _with_config(function, config)
        return traced[0].tracer.create_proxy("call_function", step, args, kwargs)

    return called


def _with_config(function: FunctionType, config: Any) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        return function(*args, config=config, **kwargs)

    mask.__name__ = f"{function.__name__}_of_{id(config)}"  # the graph tells functions by name
    return mask


# -- the check -------------------------------------------------------------------------------------


@torch.no_grad()
def check_trace(
    model: nn.Module,
    layers: dict[str, nn.Module],
    subgraphs: Iterable[Any],
    batch: dict[str, Any],
) -> None:
    """Compare the traced pass with the model's own on the first samples of a batch.

    Args:
        layers: name -> what is traced as one step: decoder layers, unless the user says otherwise.
        subgraphs: of the traced pass, in order.
        batch: keyword arguments of the model, tensors of (batch, ...).

    Raises:
        CalibrationError: what a layer gives differs.
    """
    device = get_main_device()
    inputs = {key: _first_samples(value, device) for key, value in batch.items()}
    with HooksMixin.disable_hooks(), calibration_forward_context(model):
        with _outputs(layers) as own:
            model.forward(**inputs)  # hooks on the model itself are not the pipeline's either
        with _outputs(layers) as traced:
            _run(model, subgraphs, inputs)
    real = inputs.get("attention_mask")
    for name in own:  # in the order of the pass
        off = _apart(own[name], traced.get(name), real)
        if not off <= _tolerance(own[name]):
            raise CalibrationError(
                f"llm-compressor's traced pass is not that of {type(model).__name__}: what {name} "
                f"gives is {off:.3g} of its size away from what the model gives, so everything "
                "would be measured on another model; install the versions that were tested "
                "(constraints.txt), and report this architecture to llm-compressor."
            )


def _first_samples(value: Any, device: torch.device) -> Any:
    return value[:_SAMPLES].to(device) if isinstance(value, Tensor) and value.ndim else value


@contextmanager
def _outputs(layers: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Keep what each layer gives while this is open, by name, in the order of the calls."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and not output.is_meta:  # the head is off meanwhile
                found[name] = output.detach().cpu()

        return hook

    with hooked(module.register_forward_hook(keep(name)) for name, module in layers.items()):
        yield found


def _run(model: nn.Module, subgraphs: Iterable[Any], inputs: dict[str, Any]) -> None:
    values = dict(inputs)
    for subgraph in subgraphs:
        values |= subgraph.forward(model, **{name: values[name] for name in subgraph.input_names})


def _apart(own: Tensor, traced: Tensor | None, real: Any) -> float:
    """Average the distance over real tokens, as a share of the size; inf where none is there."""
    if traced is None or traced.shape != own.shape:
        return float("inf")
    a, b = (t.float().flatten(0, -2) for t in (own, traced))
    if isinstance(real, Tensor) and real.numel() == len(a):
        a, b = (t[real.bool().flatten().cpu()] for t in (a, b))
    known = a.isfinite().all(-1)
    if not torch.equal(known, b.isfinite().all(-1)):
        return float("inf")
    a, b = a[known], b[known]  # what is not finite is refused where it is measured
    if not a.numel():
        return 0.0
    return float(((a - b).norm(dim=-1) / a.norm(dim=-1).clamp_min(1e-12)).mean())


def _tolerance(output: Tensor) -> float:
    return _TOLERANCE.get(output.dtype, _TOLERANCE_HALF)
