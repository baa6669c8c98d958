"""Knows, for every runtime, how it comes to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.export import gguf, nemotron_nas
from funcnet_plugin.runtimes.checkpoint import Checkpoint


@dataclass(frozen=True)
class Way:
    """Says how one runtime loads a checkpoint.

    Attributes:
        runtime: its name, with the version that was tried or read.
        checked: `run` where tests run it, `read` where only its source was read.
        loads: `as it is` (where the runtime has the architecture), `with this package`,
            `after export`, `after its converter` or `no`.
        export: format that it needs, see `export.FORMATS`; None if none.
        why: what stands against the checkpoint as it is; empty if nothing does.
    """

    runtime: str
    checked: str
    loads: str
    export: str | None = None
    why: str = ""


def ways(checkpoint: Checkpoint) -> list[Way]:
    """Find the way of every runtime, in a fixed order."""
    return [
        Way(name, checked, *find(checkpoint))
        for (name, checked), find in _RUNTIMES.items()
    ]  # fmt: skip


_Found = tuple[str, str | None, str]
_AS_IT_IS: _Found = ("as it is", None, "")
_SEVERAL = "its layers have several widths"
_WITH_CODE: _Found = ("as it is", None, "its code is needed: trust_remote_code")


def _foreign(checkpoint: Checkpoint) -> _Found | None:
    """Answer for what transformers itself does not have."""
    if not checkpoint.of_this_package:
        return None
    why = f"{checkpoint.architecture} is an architecture of this package"
    glm = "glm" if checkpoint.architecture == "ChatGLMForCausalLM" else None
    if glm and checkpoint.quantization is None:
        return "after export", glm, why
    return "no", None, why


def _transformers(checkpoint: Checkpoint) -> _Found:
    if checkpoint.of_this_package:
        return "with this package", None, f"{checkpoint.architecture} is an architecture of it"
    if not checkpoint.irregular:
        return _AS_IT_IS
    if checkpoint.brings_code:
        return _WITH_CODE
    if checkpoint.quantization is not None:
        return "with this package", None, _SEVERAL
    return "with this package", "remote-code", f"{_SEVERAL}; without the package export it"


def _vllm(checkpoint: Checkpoint) -> _Found:
    hidden = checkpoint.model.config.hidden_size
    if checkpoint.architecture == "FalconForCausalLM" and {*checkpoint.widths} != {4 * hidden}:
        return "no", None, "vLLM's Falcon has four times the hidden size for its width"
    if checkpoint.architecture == "ChatGLMForCausalLM" and not checkpoint.irregular:
        return _AS_IT_IS  # vLLM has code of its own for it
    foreign = _foreign(checkpoint)
    if foreign or not checkpoint.irregular:
        return foreign or _AS_IT_IS
    if checkpoint.brings_code:
        return _WITH_CODE
    if checkpoint.quantization is not None:
        return "with this package", None, _SEVERAL
    form, why = _for_servers(checkpoint)
    if form == "padded":  # vLLM builds what transformers can
        form = "remote-code"
    return "with this package", form, f"{_SEVERAL}; without the package export it{why}"


def _server(checkpoint: Checkpoint) -> _Found:
    """Answer for SGLang, TensorRT-LLM and MLX-LM: widths of several layers as nemotron-nas."""
    foreign = _foreign(checkpoint)
    if foreign or not checkpoint.irregular:
        return foreign or _AS_IT_IS
    if checkpoint.quantization is not None:
        return "no", None, f"{_SEVERAL}, and it is quantized; prune with allocation: uniform"
    form, why = _for_servers(checkpoint)
    return "after export", form, _SEVERAL + why


def _sglang(checkpoint: Checkpoint) -> _Found:
    config = checkpoint.model.config
    if checkpoint.architecture == "LlamaForCausalLM" and getattr(config, "mlp_bias", False):
        return "no", None, "SGLang's LLaMA reads no biases of MLPs; prune with another repair"
    return _server(checkpoint)


def _mlx(checkpoint: Checkpoint) -> _Found:
    if checkpoint.quantization is not None:
        return "no", None, (
            "it is quantized for other programs; give mlx_lm.convert the model before that"
        )  # fmt: skip
    return _server(checkpoint)


def _llama_cpp(checkpoint: Checkpoint) -> _Found:
    if checkpoint.quantization is not None:
        return "no", None, "it is quantized; export the model before that as gguf:q8_0"
    known = checkpoint.architecture in gguf.ARCHITECTURES or checkpoint.of_this_package
    if not known and not checkpoint.irregular:
        return "after its converter", None, (
            f"this package writes no GGUF of a {checkpoint.architecture}; llama.cpp's "
            "convert_hf_to_gguf.py reads the checkpoint if it has the architecture"
        )  # fmt: skip
    try:
        gguf.architecture_of(checkpoint.model, "it", irregular=checkpoint.irregular)
    except FuncnetError as error:
        return "no", None, str(error).rstrip(".")
    return "after export", "gguf", ""


def _onnxruntime(checkpoint: Checkpoint) -> _Found:
    if checkpoint.quantization is not None:
        return "no", None, "it is quantized; export the model before that"
    return "after export", "onnx", ""


def _for_servers(checkpoint: Checkpoint) -> tuple[str, str]:
    """Choose the export for several widths, and say what stands against the better one."""
    try:
        nemotron_nas.check_architecture(checkpoint.model, "it")
        nemotron_nas.check_widths(checkpoint.widths, "it")
    except FuncnetError as error:
        return "padded", f" (not as nemotron-nas: {str(error).rstrip('.')})"
    return "nemotron-nas", ""


_RUNTIMES: dict[tuple[str, str], Callable[[Checkpoint], _Found]] = {
    ("transformers", "run"): _transformers,
    ("vLLM 0.32", "run"): _vllm,
    ("SGLang", "read"): _sglang,
    ("TensorRT-LLM", "read"): _server,
    ("MLX-LM 0.32", "read"): _mlx,
    ("llama.cpp", "run"): _llama_cpp,
    ("onnxruntime", "run"): _onnxruntime,
}
