"""Puts the code for per-layer widths beside a checkpoint (`trust_remote_code=True`)."""

from __future__ import annotations

from pathlib import Path

from funcnet_plugin.checkpoints import per_layer
from funcnet_plugin.checkpoints.block import read_config, update_json
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.export.files import copy_side_files, load_full_precision, save
from funcnet_plugin.models.chatglm.modeling import ChatGLMForCausalLM, become_glm

_MODULE = "modeling_per_layer_width"
_CLASS = """

class {name}({module}.{name}):
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
    base = type(model)
    code = Path(per_layer.__file__).read_text()
    module = base.__module__.rsplit(".", 1)[-1]
    package = base.__module__.rsplit(".", 1)[0]
    marker = "from typing import Any\n"
    code = code.replace(marker, f"{marker}\nfrom {package} import {module}\n", 1)
    (out / f"{_MODULE}.py").write_text(code + _CLASS.format(name=base.__name__, module=module))
    update_json(
        out / "config.json",
        {"auto_map": {"AutoModelForCausalLM": f"{_MODULE}.{base.__name__}"}},
    )
