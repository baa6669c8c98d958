"""Writes ONNX through transformers' own exporter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.export.files import copy_side_files, load_full_precision

_REQUIRED = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-4  # of logits in float32; what was measured is about 1e-6


def export(source: Path, out: Path) -> None:
    """Write model.onnx (float32, any batch size and length, no cache) and check it.

    Args:
        source: a checkpoint directory, uniform or per-layer.
        out: an existing, empty directory.

    Raises:
        FuncnetError: onnx, onnxscript or onnxruntime is missing, or onnxruntime's logits differ
            from torch's.
        CheckpointError: the checkpoint is quantized.
    """
    missing = [name for name in _REQUIRED if find_spec(name) is None]
    if missing:
        raise FuncnetError(f"ONNX export needs {', '.join(missing)}; install funcnet-plugin[onnx].")
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = load_full_precision(source).float().eval()
    model.config.use_cache = False
    inputs = _inputs(model.config.vocab_size, rows=2, length=9)
    OnnxExporter().export(
        model, inputs, config=OnnxConfig(output_path=str(out / "model.onnx"), dynamic=True)
    )
    copy_side_files(source, out)
    _check(model, out / "model.onnx")


def _inputs(vocabulary: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _check(model: torch.nn.Module, path: Path) -> None:
    """Compare logits at another batch size and length than those of the export."""
    import onnxruntime

    inputs = _inputs(model.config.vocab_size, rows=3, length=17)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(["logits"], {k: v.numpy() for k, v in inputs.items()})[0]
    with torch.no_grad():
        expected = model(**inputs).logits
    difference = float((torch.from_numpy(found) - expected).abs().max())
    if not difference < _TOLERANCE:
        raise FuncnetError(
            f"onnxruntime's logits differ from torch's by {difference:.1e} (outputs: "
            f"{', '.join(names)}); {path} is not usable."
        )
