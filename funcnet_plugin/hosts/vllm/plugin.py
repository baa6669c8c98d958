"""The plugin that vLLM finds in the entry-point group `vllm.general_plugins`.

vLLM calls it in each of its processes, in some more than once, and before it has decided which
device they use. So it imports nothing of vLLM: it waits until vLLM itself imports the modules that
are changed, and what is not as it was in the tested versions stays unchanged, with one warning.
"""

from __future__ import annotations

from types import ModuleType

from funcnet_plugin.hosts.autoload import watch


def register() -> None:
    """Let vLLM build per-layer widths once it comes to that; calling twice is harmless."""
    watch("vllm.model_executor.models.utils", _build)
    watch("vllm.config.model", _check)


def _build(models_utils: ModuleType) -> None:
    from funcnet_plugin.hosts.vllm import layers

    layers.enable(models_utils)


def _check(model_config: ModuleType) -> None:
    from funcnet_plugin.hosts.vllm import parallel

    parallel.enable(model_config.ModelConfig)
