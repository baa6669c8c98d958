"""Writes a pruned checkpoint in other forms, for people and programs without this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from funcnet_plugin.checkpoints.block import read_config
from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.output import check_output, staged

# name -> module of this package with `export(source, out)`, imported when it is asked for
FORMATS = {
    "padded": "padded", "remote-code": "remote_code", "nemotron-nas": "nemotron_nas",
    "gguf": "gguf", "onnx": "onnx", "glm": "glm",
}  # fmt: skip


def exporter(name: str) -> Callable[[Path, Path], None]:
    """Find the function (checkpoint directory, new directory) -> None that writes a format.

    Args:
        name: of `FORMATS`, or `NAME:VARIANT` where the module has `VARIANTS`.

    Raises:
        FuncnetError: no such format.
    """
    form, _, variant = name.partition(":")
    if form not in FORMATS:
        raise FuncnetError(f"there is no export format {form!r}; choose one of "
                           f"{', '.join(FORMATS)}.")  # fmt: skip
    module = import_module(f"{__name__}.{FORMATS[form]}")
    if not variant:
        return module.export
    variants = getattr(module, "VARIANTS", ())
    if variant not in variants:
        known = f"one of {', '.join(variants)}" if variants else "nothing"
        raise FuncnetError(f"the export format {form} takes {known} after a colon, not {variant}.")
    return partial(module.export, variant=variant)


def export_model(source: str | Path, out: str | Path, form: str) -> None:
    """Write a checkpoint in another form, as `funcnet export` does.

    Args:
        source: checkpoint directory.
        out: directory to write; it must not exist or be empty.
        form: see `export.FORMATS`.

    Raises:
        FuncnetError: one sentence on what cannot be done; nothing is written then.
    """
    convert = exporter(form)
    source, out = Path(source).expanduser(), Path(out).expanduser()
    read_config(source)
    check_output(out)
    with saying_full(out), staged(out) as staging:
        convert(source, staging)
