"""Called by `import torch` and by vLLM through their entry points; must never raise.

It lies beside the package, not in it: if the package cannot be imported (a checkout was moved, a
file is broken), torch would turn the exception into a dead `import torch`.
"""


def boot() -> None:
    """Let funcnet_plugin watch for llm-compressor, lm-eval and transformers.

    Stdlib only, about a millisecond. FUNCNET_AUTOLOAD=0 turns it off.
    """
    _call("funcnet_plugin.hosts.autoload", "install")


def boot_in_vllm() -> None:
    """Let vLLM build checkpoints with per-layer widths. FUNCNET_AUTOLOAD=0 turns it off."""
    _call("funcnet_plugin.hosts.vllm.plugin", "register")


def _call(module: str, function: str) -> None:
    import os
    from importlib import import_module

    if os.environ.get("FUNCNET_AUTOLOAD", "1") == "0":
        return
    try:
        getattr(import_module(module), function)()
    except Exception as error:  # whatever is wrong with us is not the host's problem
        import warnings

        warnings.warn(
            f"funcnet_plugin is installed but cannot be loaded ({type(error).__name__}: {error}); "
            "reinstall it, or uninstall funcnet-plugin.",
            stacklevel=3,
        )
