"""Writes a pruned checkpoint in other forms, for people and programs without this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.checkpoints.block import read_config
from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.output import check_output, staged

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel

# name -> module of this package with `export(source, out)`, imported when it is asked for
FORMATS = {"padded": "padded", "remote-code": "remote_code", "onnx": "onnx", "glm": "glm"}


def exporter(name: str) -> Callable[[Path, Path], None]:
    """Find the function (checkpoint directory, new directory) -> None that writes a format.

    Raises:
        FuncnetError: no such format.
    """
    if name not in FORMATS:
        raise FuncnetError(f"there is no export format {name!r}; choose one of "
                           f"{', '.join(FORMATS)}.")  # fmt: skip
    return import_module(f"{__name__}.{FORMATS[name]}").export


def check_form(form: str, model: PreTrainedModel, modifiers: Sequence[Modifier]) -> None:
    """Refuse to export what a recipe will not leave in a shape for it, before the recipe runs.

    Args:
        form: see `FORMATS`.
        model: before pruning; may be on the meta device.
        modifiers: of the recipe, those of ours planned.

    Raises:
        FuncnetError: the form is for other models.
    """
    from llmcompressor.modifiers.quantization import QuantizationMixin

    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier
    from funcnet_plugin.models.chatglm.modeling import ChatGLMForCausalLM

    for modifier in modifiers:
        if isinstance(modifier, QuantizationMixin):
            raise FuncnetError(
                f"{form} takes no quantized model, and the recipe has a {type(modifier).__name__}; "
                "leave one of the two out."
            )
    if form == "glm" and not isinstance(model, ChatGLMForCausalLM):
        raise FuncnetError(
            f"glm is for ChatGLM, and this is a {type(model).__name__}; leave --export out."
        )
    one_width = (m.leaves_one_width() for m in modifiers if isinstance(m, WidthPruningModifier))
    if form == "remote-code" and any(one_width):
        raise FuncnetError(
            "the recipe leaves one width in all layers, which stock transformers loads as it is; "
            "leave --export remote-code out."
        )


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
    read_config(source)
    check_output(Path(out))
    with saying_full(Path(out)), staged(Path(out)) as staging:
        convert(Path(source), staging)
