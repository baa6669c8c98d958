"""Reads from a model's shapes what passes through it take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressed_tensors.offload import disable_onloading
from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.workload import Workload


@dataclass(frozen=True)
class Sizes:
    """Holds the sizes of a model.

    Attributes:
        itemsize: bytes of a weight, and of an activation.
        weights: bytes of all weights; input and output embeddings apart, as llm-compressor has
            them while it works.
        layer: bytes of the largest module that goes to the GPU by itself.
        layers: how many decoder layers there are.
        hidden, vocabulary, heads, head_size: as in the config.
    """

    itemsize: int
    weights: int
    layer: int
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    head_size: int

    @classmethod
    def of(cls, model: nn.Module, layers: int) -> Sizes:
        """Measure a model; it may be on the meta device.

        Args:
            layers: how many decoder layers it has.
        """
        config = model.config.get_text_config()
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        vocabulary, hidden = embeddings.weight.shape
        itemsize = embeddings.weight.element_size()
        with disable_onloading():
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
        if head is not None and head.weight is embeddings.weight:
            weights += vocabulary * hidden * itemsize
        heads = getattr(config, "num_attention_heads", None) or max(1, hidden // 64)
        return cls(
            itemsize=itemsize,
            weights=weights,
            layer=max((weights - 2 * vocabulary * hidden * itemsize) // layers, 0),
            layers=layers,
            hidden=hidden,
            vocabulary=vocabulary,
            heads=heads,
            head_size=getattr(config, "head_dim", None) or hidden // heads,
        )

    def between_layers(self, work: Workload) -> int:
        """Count what llm-compressor keeps of all samples between two layers.

        That is tokens and positions, hidden states, rotary embeddings, and a mask for each sample.
        """
        of_token = 3 * 8 + self.itemsize * (self.hidden + 2 * self.head_size)
        mask = work.length**2 * self.itemsize
        return work.tokens * of_token + work.samples * mask

    def per_token(self, units: Sequence[Unit]) -> int:
        """Count what one layer computes of a token, while it runs."""
        widest = max((unit.n_columns for unit in units), default=0)
        return self.itemsize * 4 * widest + 4 * 6 * self.hidden

    def of_batch(self, units: Sequence[Unit], work: Workload) -> int:
        """Count what one layer computes of a batch; llm-compressor has attention written out."""
        scores = work.batch * self.heads * work.length**2 * (2 * self.itemsize + 4)
        return max(work.batch * work.length * self.per_token(units), scores)

    def kept_for_backward(self, units: Sequence[Unit]) -> int:
        """Count what a backward pass keeps of one token, of all layers."""
        widest = max((unit.n_columns for unit in units), default=0)
        return self.layers * (3 * widest * self.itemsize + self.hidden * (4 * self.itemsize + 16))
