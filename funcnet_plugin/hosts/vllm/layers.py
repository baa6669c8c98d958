"""Builds decoder layers of different widths in vLLM.

vLLM's models read the width from the config that all layers share, in as many ways as there are
models, and all of them give the building of a layer to `make_layers`. While that builds a layer of
our checkpoints, the shared config therefore says what this layer's own config says; afterwards it
is as it was. Weights, quantization and compilation follow the modules that were built.

Of vLLM it imports what is loaded already.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from funcnet_plugin.checkpoints.per_layer import is_ours

TESTED = ">=0.32,<0.33"
_MAKE_LAYERS = ("num_hidden_layers", "layer_fn", "prefix")

Layer = Callable[..., Any]


def enable(models_utils: ModuleType) -> None:
    """Let vLLM build per-layer widths.

    Args:
        models_utils: `vllm.model_executor.models.utils`; its `make_layers` is wrapped, once, also
            where a module has it already under the same name.

    Raises:
        TypeError: `make_layers` is called in another way than in the tested versions.
        AttributeError, ImportError: a part is not there.
    """
    from vllm.config import get_current_vllm_config_or_none

    make_layers = models_utils.make_layers
    if getattr(make_layers, "_funcnet", False):
        return
    found = tuple(inspect.signature(make_layers).parameters)
    if found != _MAKE_LAYERS:
        raise TypeError(f"make_layers takes {', '.join(found)}, not {', '.join(_MAKE_LAYERS)}")

    @wraps(make_layers)
    def make_layers_of_their_own_width(num_hidden_layers: int, layer_fn: Layer, prefix: str):
        with ExitStack() as stack:
            for config in _configs(get_current_vllm_config_or_none()):
                if is_ours(config) and config.num_hidden_layers == num_hidden_layers:
                    _say_if_untested()
                    layer_fn = _told(layer_fn, stack.enter_context(speaking_of_layers(config)))
            return make_layers(num_hidden_layers, layer_fn, prefix)

    make_layers_of_their_own_width._funcnet = True
    for module in [models_utils, *sys.modules.values()]:
        if getattr(module, "__dict__", {}).get("make_layers") is make_layers:
            module.make_layers = make_layers_of_their_own_width


@contextmanager
def speaking_of_layers(config: Any) -> Iterator[Callable[[int], None]]:
    """Let a config with per-layer values answer for one layer at a time.

    Args:
        config: of transformers, heterogeneous; read from it while this lasts, a per-layer
            attribute has one value, and at the end `config` is as before.

    Yields:
        a function that chooses the layer.
    """
    layers = config.to_dict()["per_layer_config"]
    names = sorted(config.per_layer_attributes)
    own = [{name: getattr(layer, name) for name in names} for layer in config.per_layer_config]
    config.per_layer_config = None
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}

    def choose(index: int) -> None:
        for name, value in own[index].items():
            setattr(config, name, value)

    try:
        yield choose
    finally:
        for name in names:
            if name in shared:
                setattr(config, name, shared[name])
            else:
                delattr(config, name)
        config.per_layer_config = layers


def _told(layer_fn: Layer, choose: Callable[[int], None]) -> Layer:
    def build(prefix: str):
        choose(int(prefix.rpartition(".")[2]))
        return layer_fn(prefix=prefix)

    return build


def _configs(current: Any) -> list[Any]:
    """List the configs that a model which is being built may read, each once.

    Args:
        current: `VllmConfig` of the model; None where a test builds layers by themselves.
    """
    model = getattr(current, "model_config", None)
    found = [getattr(model, name, None) for name in ("hf_config", "hf_text_config")]
    return [*{id(config): config for config in found}.values()]


def _say_if_untested() -> None:
    import vllm

    from funcnet_plugin.hosts.arrivals import say_if_untested

    say_if_untested("vllm", vllm.__version__, TESTED)
