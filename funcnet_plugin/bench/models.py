"""Reads what a model to bench looks like: shapes, vocabulary, the work of a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from funcnet_plugin.bench.load import Load
from funcnet_plugin.checkpoints.block import read_config
from funcnet_plugin.errors import CheckpointError, FuncnetError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """Counts what a model computes.

    Attributes:
        linear: multiply-adds of a token in all linear layers but the head.
        head: multiply-adds of a token that is predicted.
        attention: multiply-adds of a token with each token that it looks at, all layers.
        widths: neurons of each layer.
        positions: tokens that a text may have; None if nothing says so.
        vocabulary: number of tokens.
    """

    linear: int
    head: int
    attention: int
    widths: tuple[int, ...]
    positions: int | None
    vocabulary: int

    def prefill(self, load: Load) -> int:
        """Count the multiply-adds until the first token, of which only the last is predicted."""
        n = load.prompt
        pairs = n * (n + 1) // 2
        return load.concurrency * (n * self.linear + self.head + pairs * self.attention)

    def decode(self, load: Load) -> int:
        """Count the multiply-adds of all tokens behind the first."""
        n = load.written - 1
        pairs = n * load.prompt + n * (n + 1) // 2
        return load.concurrency * (n * (self.linear + self.head) + pairs * self.attention)


@dataclass(frozen=True)
class Model:
    """Names a model to bench.

    Attributes:
        name: in tables.
        path: directory.
        twin_of: name of the model that it is the aligned twin of.
        aligned: its widths are multiples of this, if it is a twin.
    """

    name: str
    path: Path
    twin_of: str | None = None
    aligned: int | None = None

    @property
    def kind(self) -> str:
        """Tell what lies there: `gguf`, `onnx` or `checkpoint`."""
        for kind in ("gguf", "onnx"):
            if (self.path / f"model.{kind}").exists():
                return kind
        return "checkpoint"

    @property
    def quantized(self) -> bool:
        return self.kind == "checkpoint" and "quantization_config" in read_config(self.path)

    @cached_property
    def shape(self) -> Shape:
        """Read the shapes, without weights.

        Raises:
            FuncnetError: there is nothing to read, or the package that reads it is missing.
        """
        return _of_gguf(self.path) if self.kind == "gguf" else _of_checkpoint(self.path)

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Read the vocabulary."""
        if self.kind == "gguf":
            tokens = _read_gguf(self.path).fields["tokenizer.ggml.tokens"].contents()
            return {token: number for number, token in enumerate(tokens)}
        from funcnet_plugin.checkpoints.loading import load_tokenizer

        return load_tokenizer(self.path).get_vocab()


def find_models(paths: list[Path]) -> list[Model]:
    """Name the models, by the last part of their paths where that tells them apart.

    Raises:
        FuncnetError: one is no directory with a model, or is given twice.
    """
    whole = [path.resolve() for path in paths]
    for path, other in zip(paths, whole, strict=True):
        if whole.count(other) > 1:
            raise FuncnetError(f"{path} is given twice; bench each model once.")
        if not path.is_dir():
            raise CheckpointError(f"{path} is no directory; give that of a checkpoint or a GGUF.")
    names = [path.name for path in whole]
    return [Model(path.name if names.count(path.name) == 1 else str(path), path) for path in whole]


def check_same_tokenizer(models: list[Model]) -> None:
    """Refuse models whose tokens are not the same: their times per token say nothing.

    One vocabulary may have more tokens than the other, as GGUF fills it up.

    Raises:
        FuncnetError: two differ.
    """
    first, *others = models
    for other in others:
        few, many = sorted((first.tokens, other.tokens), key=len)
        if not few.items() <= many.items():
            raise FuncnetError(
                f"{first.name} and {other.name} have different tokenizers, so the same text is "
                "not as many tokens for both; bench models of one tokenizer."
            )


def size_on_disk(path: Path) -> int:
    """Count the bytes of all files of a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def model_on_meta(path: Path) -> PreTrainedModel:
    """Build a checkpoint's model without weights, quantized or not.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import PreTrainedModel

    from funcnet_plugin.checkpoints.loading import build_on_meta, read_model_config
    from funcnet_plugin.checkpoints.per_layer import enable

    enable(PreTrainedModel)
    read_config(path)
    return build_on_meta(read_model_config(path), path)


def _of_checkpoint(path: Path) -> Shape:
    from transformers.pytorch_utils import Conv1D

    from funcnet_plugin.adapters import bind

    model = model_on_meta(path)
    config, head = model.config, model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    widths = tuple(bind(model, try_mlps=False).widths)
    return Shape(
        linear=linear,
        head=head.weight.numel(),
        attention=2 * heads * size * config.num_hidden_layers,
        widths=widths,
        positions=getattr(config, "max_position_embeddings", None),
        vocabulary=config.vocab_size,
    )


def _read_gguf(path: Path) -> Any:
    if find_spec("gguf") is None:
        raise FuncnetError(f"reading {path} needs the package gguf; install funcnet-plugin[gguf].")
    import gguf

    return gguf.GGUFReader(path / "model.gguf")


def _of_gguf(path: Path) -> Shape:
    reader = _read_gguf(path)

    def field(name: str) -> Any:
        return reader.fields[f"{architecture}.{name}"].contents()

    architecture = reader.fields["general.architecture"].contents()
    layers, widths = field("block_count"), field("feed_forward_length")
    heads = field("attention.head_count")
    sizes = {
        tensor.name: int(tensor.n_elements) for tensor in reader.tensors if len(tensor.shape) > 1
    }
    embedding = sizes.pop("token_embd.weight")
    head = sizes.pop("output.weight", embedding)  # the same tensor where they are tied
    return Shape(
        linear=sum(sizes.values()),
        head=head,
        attention=2 * field("attention.key_length")
        * (sum(heads) if isinstance(heads, list) else heads * layers),
        widths=tuple(widths) if isinstance(widths, list) else (widths,) * layers,
        positions=field("context_length"),
        vocabulary=field("vocab_size"),
    )  # fmt: skip
