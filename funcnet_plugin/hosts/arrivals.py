"""Does what each host needs when it has been imported. Nothing heavy: only names are registered."""

from __future__ import annotations

import warnings
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

# The versions that the tests ran with; others may work, and a user should know.
TESTED = {
    "llmcompressor": ">=0.14,<0.15",
    "lm_eval": ">=0.4.13,<0.5",
    "transformers": ">=5.15,<5.18",
}


@cache
def check_version(distribution: str) -> None:
    """Warn once if a host is not of a version that was tested."""
    say_if_untested(distribution, version(distribution), TESTED[distribution])


@cache
def say_if_untested(host: str, installed: str, tested: str) -> None:
    """Warn once if a version lies outside a range, as of PEP 440."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        known = SpecifierSet(tested).contains(installed, prereleases=True)
    except InvalidVersion:  # of a build from source without a tag
        known = False
    if not known:
        warnings.warn(
            f"{host} {installed} is outside the range that funcnet_plugin was tested with "
            f"({tested}); if something fails, install a version in it.",
            stacklevel=2,
        )


def teach_recipes(factory_module: ModuleType) -> None:
    """Let llm-compressor's recipes know our modifiers.

    They are imported when a recipe names one: at that point llm-compressor is fully loaded.
    """
    from funcnet_plugin.recipe import MODIFIER_NAMES

    check_version("llmcompressor")
    factory = factory_module.ModifierFactory
    create = factory.create
    if getattr(create, "_funcnet", False):
        return

    def create_with_plugin(type_: str, *args, **kwargs):
        if type_ in MODIFIER_NAMES and type_ not in factory._registered_registry:
            from funcnet_plugin.hosts.llmcompressor.modifiers import register

            register()
        return create(type_, *args, **kwargs)

    create_with_plugin._funcnet = True
    factory.create = staticmethod(create_with_plugin)


def surround_oneshot(entry: ModuleType) -> None:
    """Let `oneshot` say in words what it cannot prune, and tell our modifiers of its run."""
    from funcnet_plugin.hosts.llmcompressor.oneshot import surround

    surround(entry)


def add_lm_eval_model(models_module: ModuleType) -> None:
    """Let lm-eval know `--model funcnet`. The string is resolved when the model is asked for.

    lm-eval's next release finds the same class through the entry-point group `lm_eval.models`.
    """
    from lm_eval.api.registry import model_registry

    check_version("lm_eval")
    if "funcnet" not in model_registry:
        model_registry.register("funcnet", target="funcnet_plugin.hosts.lm_eval:FuncnetLM")


def build_layers_of_their_own_width(modeling_utils: ModuleType) -> None:
    """Let transformers build our checkpoints with per-layer widths."""
    from funcnet_plugin.checkpoints.per_layer import enable

    check_version("transformers")
    enable(modeling_utils.PreTrainedModel)


def know_our_architectures(configuration_auto: ModuleType) -> None:
    """Let transformers load ChatGLM in its original format, and LLaMA after SliceGPT."""
    from funcnet_plugin.models.chatglm.configuration import ChatGLMConfig
    from funcnet_plugin.models.first_use import when_first_used
    from funcnet_plugin.models.sliced_llama.configuration import SlicedLlamaConfig

    for config, package in ((ChatGLMConfig, "chatglm"), (SlicedLlamaConfig, "sliced_llama")):
        configuration_auto.AutoConfig.register(config.model_type, config, exist_ok=True)
        when_first_used(config.model_type, partial(_register, package))


def _register(package: str) -> None:
    """Import the modelling code of one of our model packages, and register it."""
    import_module(f"funcnet_plugin.models.{package}.registration").register_classes()
