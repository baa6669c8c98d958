"""What a window says is decided by its own random numbers."""

import numpy as np
import pytest
import torch

from funcnet_plugin.text import writing
from funcnet_plugin.text.sampling import TEMPERATURE, Drawing, uniforms
from funcnet_plugin.text.writing import write
from tests.conftest import make_llama

ORDINARY = range(3, 32)


def draw(logits, numbers, left_out=()):
    """Draw one token for each number, all from the same predictions."""
    drawing = Drawing(make_llama(), torch.tensor(left_out, dtype=torch.long), numbers[:, None])
    ids = torch.zeros(len(numbers), 0, dtype=torch.long)
    kept = drawing(ids, logits.repeat(len(numbers), 1))
    assert (torch.isfinite(kept).sum(1) == 1).all()
    return kept.argmax(1)


def test_tokens_come_as_often_as_they_are_likely():
    logits = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    numbers = (torch.arange(20000) + 0.5) / 20000  # every probability is met up to one number
    found = torch.bincount(draw(logits, numbers, [0, 5, 31]), minlength=32) / 20000
    logits[:, [0, 5, 31]] = -torch.inf
    expected = (logits[0] / TEMPERATURE).softmax(0)
    torch.testing.assert_close(found, expected, atol=2 / 20000, rtol=0)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_the_first_and_the_last_number_give_tokens_that_may_be_written(spread):
    logits = spread * torch.randn(1, 50000, generator=torch.Generator().manual_seed(0))
    logits[:, [1, -2]] = 40.0  # likely or not, they are left out
    numbers = torch.tensor([0.0, 1.0 - 2.0**-24])
    low, high = draw(logits, numbers, [0, 1, 49998, 49999]).tolist()
    assert 1 < low <= high < 49998


def test_numbers_belong_to_their_window():
    found = uniforms(0, [4, 2, 0], 50)
    assert found.shape == (3, 50) and found.dtype == torch.float32
    assert torch.equal(found[1:2], uniforms(0, [2], 50))
    assert torch.equal(found[:, :20], uniforms(0, [4, 2, 0], 20))
    for other in (uniforms(0, [5, 3, 1], 50), uniforms(1, [4, 2, 0], 50)):
        assert not (found == other).any()
    many = uniforms(0, range(400), 50).numpy()
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(many[:200].ravel(), many[200:].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_text_does_not_depend_on_how_many_windows_are_written_at_once(monkeypatch, at_once):
    model = make_llama()
    begin = [[5], [6, 7], [8], [9, 10, 11], [5], [12, 13], [8]]
    together = write(model, ORDINARY, begin=begin, window=24, seed=3)
    monkeypatch.setattr(writing, "windows_at_once", lambda network, window: at_once)
    assert write(model, ORDINARY, begin=begin, window=24, seed=3) == together
    for first, window in zip(begin, together, strict=True):
        assert window[: len(first)] == first and len(window) == 24
    assert together[0] != together[4]  # of one beginning, and two places


def test_a_shorter_window_is_the_beginning_of_a_longer_one():
    model, begin = make_llama(), [[5], [6, 7], [8]]
    long, short = (write(model, ORDINARY, begin=begin, window=n, seed=0) for n in (24, 10))
    assert [window[:10] for window in long] == short


def test_no_other_random_numbers_are_drawn_or_set():
    model = make_llama()
    state = torch.get_rng_state()
    first = write(model, ORDINARY, begin=[[5]] * 3, window=12, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert write(model, ORDINARY, begin=[[5]] * 3, window=12, seed=0) == first
