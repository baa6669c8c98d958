"""Perplexity is what the model's own loss says, however much is computed at once."""

import math

import pytest
import torch

from funcnet_plugin.evaluation import perplexity as module
from funcnet_plugin.evaluation.perplexity import perplexity
from tests.conftest import make_llama


@pytest.fixture
def windows():
    return torch.randint(0, 32, (5, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_is_the_exponential_of_the_models_own_loss(windows):
    model = make_llama().eval()
    losses = [float(model(row[None], labels=row[None]).loss) for row in windows]
    assert perplexity(model, windows, "some") == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)


def test_a_large_vocabulary_is_read_a_few_windows_at_a_time(windows, monkeypatch):
    model = make_llama().eval()
    rows = []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    whole = perplexity(model, windows, "some")
    monkeypatch.setattr(module, "_BATCH_LOGITS", 30 * model.config.vocab_size)
    assert perplexity(model, windows, "some") == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(module, "_BATCH_LOGITS", 1)  # not even one
    assert perplexity(model, windows, "some") == pytest.approx(whole, rel=1e-6)
    assert rows == [5, 2, 2, 1, 1, 1, 1, 1, 1]


def test_a_model_that_predicts_nan_has_none(windows):
    model = make_llama().eval()
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    assert math.isnan(perplexity(model, windows, "some"))
