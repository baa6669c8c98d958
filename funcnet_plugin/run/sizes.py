"""Reads from a model's shapes what its weights take, and what waits between its layers."""

from __future__ import annotations

from dataclasses import dataclass

from compressed_tensors.offload import disable_onloading
from torch import nn

from funcnet_plugin.measure.workload import Workload


@dataclass(frozen=True)
class Sizes:
    """Holds the sizes of a model.

    Attributes:
        itemsize: bytes of a weight, and of an activation.
        weights: bytes of all weights; input and output embeddings apart, as llm-compressor has
            them while it works.
        largest: bytes of what goes to a GPU by itself, a layer or an embedding.
        hidden, head_size: as in the config.
    """

    itemsize: int
    weights: int
    largest: int
    hidden: int
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
        embedding = vocabulary * hidden * itemsize
        with disable_onloading():
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
        if head is not None and head.weight is embeddings.weight:
            weights += embedding
        heads = getattr(config, "num_attention_heads", None) or max(1, hidden // 64)
        return cls(
            itemsize=itemsize,
            weights=weights,
            largest=max((weights - 2 * embedding) // layers, embedding),
            hidden=hidden,
            head_size=getattr(config, "head_dim", None) or hidden // heads,
        )

    def between_layers(self, work: Workload) -> int:
        """Count what llm-compressor keeps of all samples between two layers.

        That is tokens and positions, hidden states, rotary embeddings, and a mask for each sample.
        """
        of_token = 3 * 8 + self.itemsize * (self.hidden + 2 * self.head_size)
        mask = work.length**2 * self.itemsize
        return work.tokens * of_token + work.samples * mask
