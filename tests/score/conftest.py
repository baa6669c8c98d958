"""One layer of a small model, measured on text: what scorers are given, and the same by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from funcnet_plugin.adapters import MLPBlock, bind
from funcnet_plugin.measure import gradients
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Evidence
from tests.conftest import make_llama
from tests.hosting import loader
from tests.slopes import drawn_labels, output_slopes


@dataclass(frozen=True)
class Measured:
    """Attributes:
    activations: what enters the down projection, (tokens, width), float64.
    slopes: the gradients of the summed loss by the layer's output, (tokens, hidden), float64,
        at the labels that the model drew.
    evidence: of all statistics.
    """

    block: MLPBlock
    activations: np.ndarray
    slopes: np.ndarray
    evidence: Evidence

    @property
    def down(self) -> np.ndarray:
        """The weight of the down projection, (hidden, width), float64."""
        return self.block.down.weight.detach().double().numpy()

    def score(self, name: str) -> np.ndarray:
        """What a scorer makes of the evidence."""
        return SCORERS.make(name).score(self.evidence).numpy()


@pytest.fixture(scope="package")
def measured(texts) -> Measured:
    model = make_llama()
    block = bind(model).blocks[1]
    seen = []
    hook = block.down.register_forward_pre_hook(lambda m, a: seen.append(a[0][0].detach()))
    for batch in loader(texts):
        model(**batch)
    hook.remove()
    moments = Moments(block.width)
    for h in seen:
        moments.add(h)
    text = Text.read(loader(texts))
    with pytest.MonkeyPatch.context() as patched:
        labels = drawn_labels(patched)
        of_output = gradients.output_gradients(model, text, [block], seed=3)[1]
    statistics = {
        "moments": moments,
        "weight_gradients": gradients.weight_gradients(model, text, [block])[1],
        "output_gradients": of_output,
    }
    ids = [batch["input_ids"] for batch in text.batches]
    return Measured(
        block,
        torch.cat(seen).double().numpy(),
        output_slopes(model, block, ids, labels),
        Evidence(block, seed=3, statistics=statistics),
    )
