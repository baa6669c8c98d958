"""A survey of a small model, and what its MLPs did meanwhile."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure.text import Text
from funcnet_plugin.survey.build import Survey
from tests.conftest import make_llama
from tests.hosting import loader
from tests.surveys import survey_of


@dataclass(frozen=True)
class Surveyed:
    """Attributes:
    found: with whole maps.
    signals: layer -> (tokens, 2 * width), float64, standardised.
    """

    model: torch.nn.Module
    text: Text
    found: Survey
    signals: list[Tensor]


def standardised_signals(model, batches) -> list[Tensor]:
    seen = {}
    handles = [
        module.register_forward_hook(
            lambda m, a, o, key=(block.index, name): seen.setdefault(key, []).append(o[0])
        )
        for block in bind(model).blocks
        for name, module in (("act", block.activation), ("up", block.up))
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    whole = [
        torch.cat([torch.cat(seen[block.index, name]) for name in ("act", "up")], dim=1).double()
        for block in bind(model).blocks
    ]
    return [(x - x.mean(0)) / x.std(0, correction=0) for x in whole]


@pytest.fixture(scope="package", params=["local", "windows", "global"])
def surveyed(request, texts) -> Surveyed:
    model = make_llama()
    found = survey_of(model, texts, starts=4, cut=0.0, strategy=request.param, layers_per_window=2)
    text = Text.read(loader(texts))
    return Surveyed(model, text, found, standardised_signals(model, loader(texts)))
