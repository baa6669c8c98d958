"""Found by optimum-cli in its namespace `optimum.commands.register`; loaded on every start of it.

optimum-cli isolates nothing: an exception here would take all of its commands down.
"""

try:
    from funcnet_plugin.hosts.optimum import FuncnetCommand

    REGISTER_COMMANDS = [FuncnetCommand]
except Exception as error:
    import warnings

    warnings.warn(
        f"optimum-cli funcnet is not available ({type(error).__name__}: {error}); "
        "reinstall funcnet-plugin.",
        stacklevel=2,
    )
    REGISTER_COMMANDS = []
