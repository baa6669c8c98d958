"""Called by `import torch` through its `torch.backends` entry points; must never raise.

It lies beside the package, not in it: if the package cannot be imported (a checkout was moved, a
file is broken), torch would turn the exception into a dead `import torch`.
"""


def boot() -> None:
    """Let funcnet_plugin watch for llm-compressor, lm-eval and transformers.

    Stdlib only, about a millisecond. FUNCNET_AUTOLOAD=0 turns it off.
    """
    import os

    if os.environ.get("FUNCNET_AUTOLOAD", "1") == "0":
        return
    try:
        from funcnet_plugin.hosts.autoload import install

        install()
    except Exception as error:  # whatever is wrong with us is not torch's problem
        import warnings

        warnings.warn(
            f"funcnet_plugin is installed but cannot be loaded ({type(error).__name__}: {error}); "
            "reinstall it, or uninstall funcnet-plugin.",
            stacklevel=2,
        )
