"""Puts the code for per-layer widths beside a checkpoint (`trust_remote_code=True`).

What builds a model with transformers loads it then, vLLM's transformers backend for one.
"""

from __future__ import annotations

from pathlib import Path

from funcnet_plugin.checkpoints import per_layer
from funcnet_plugin.checkpoints.block import read_config, update_json
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.export.files import copy_side_files, load_full_precision, save
from funcnet_plugin.models.chatglm.modeling import ChatGLMForCausalLM, become_glm

_MODULE = "modeling_per_layer_width"
# Names that no runtime takes for an architecture of its own, whose widths it would not read.
_PREFIX = "PerLayerWidth"
_CLASS = """

class {prefix}{name}({module}.{name}):
    def __init__(self, config, *args, **kwargs):
        prepare({module}.{name}, config)
        super().__init__(config, *args, **kwargs)
"""


def export(source: Path, out: Path) -> None:
    """Copy a checkpoint and add the modelling file that plain transformers needs for it.

    Where this package is installed the copy loads like the original, without remote code.

    Args:
        source: a checkpoint directory with per-layer widths.
        out: an existing, empty directory.

    Raises:
        CheckpointError: the widths are uniform (stock transformers reads those), or quantized.
    """
    if "per_layer_config" not in read_config(source):
        raise CheckpointError(
            f"{source} has one width for all layers; stock transformers loads it as it is."
        )
    model = load_full_precision(source)
    if isinstance(model, ChatGLMForCausalLM):
        become_glm(model)  # the file must stand on transformers' own modelling code
    save(model, out)
    copy_side_files(source, out)
    made = {"AutoModel": type(model.base_model), "AutoModelForCausalLM": type(model)}
    (out / f"{_MODULE}.py").write_text(_code(*made.values()))
    update_json(
        out / "config.json",
        {
            "architectures": [_PREFIX + type(model).__name__],
            "auto_map": {a: f"{_MODULE}.{_PREFIX}{base.__name__}" for a, base in made.items()},
        },
    )


def _code(*bases: type) -> str:
    """Write the modelling file: how layers get their width, and a class for each of the bases."""
    code, marker = Path(per_layer.__file__).read_text(), "from typing import Any\n"
    packages = dict.fromkeys(base.__module__.rpartition(".")[::2] for base in bases)
    lines = "".join(f"from {package} import {module}\n" for package, module in packages)
    classes = (
        _CLASS.format(prefix=_PREFIX, name=base.__name__, module=base.__module__.rpartition(".")[2])
        for base in bases
    )
    return code.replace(marker, f"{marker}\n{lines}", 1) + "".join(classes)
