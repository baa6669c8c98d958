"""What runs the whole model ahead of calibration refuses text that it cannot read."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.run import Request
from funcnet_plugin.run.ahead import measure_ahead
from funcnet_plugin.run.clock import Clock
from funcnet_plugin.score.parts import SCORERS
from tests.conftest import make_llama

IDS = torch.randint(3, 32, (2, 8), generator=torch.Generator().manual_seed(0))
PAIRS = {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 8, 8, dtype=torch.long).tril()}


def measured(text, scorer):
    parts = {"scorers": (SCORERS.make(scorer),), "repair": REPAIRS.make("none")}
    model = make_llama()
    units = bind(model).blocks
    request = Request(pruning_ratio=0.2, **parts)
    return measure_ahead(request, model, units, units, text, None, None, None, Clock())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "has embeddings and no input_ids, .* give tokens, or a recipe without own_text"),
        ([PAIRS], r"attention_mask of pairs of tokens, .* give masks of shape \(samples, tokens\)"),
    ],
)
def test_text_that_a_whole_pass_cannot_read_is_refused(batches, message):
    with pytest.raises(CalibrationError, match=message):
        measured(Text.read(batches), "surgeon")
    assert not measured(Text.read(batches), "effect").gradients  # needs no such pass
