"""How many windows are written at once: what the memory holds, and fewer where it does not."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from funcnet_plugin import bars
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text import at_once, writing
from funcnet_plugin.text.at_once import bytes_per_window, numbers_per_token, windows_at_once
from funcnet_plugin.text.writing import write
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import logged

ORDINARY = range(3, 32)
CPU_FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 9 bytes."
)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_counted_as_the_model_keeps_them(family):
    model = FAMILIES[family].build()
    ids = torch.ones(1, 4, dtype=torch.long)
    kept = model(ids, attention_mask=ids, use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers)
    assert 4 * numbers_per_token(model.config.get_text_config()) == numbers


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        # Falcon 40B keeps keys of shared heads for every head
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2 * 2 * 32),
        ("falcon", {"multi_query": False}, 2 * 2 * 32),
        # keys of 6 + 2, values of 5 numbers for each of four heads
        ("deepseek_v3", {"qk_nope_head_dim": 6, "qk_rope_head_dim": 2, "v_head_dim": 5},
         2 * 4 * 13),
    ],
)  # fmt: skip
def test_so_are_those_of_unusual_heads(model_type, fields, expected):
    config = AutoConfig.for_model(
        model_type, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **fields
    )
    assert numbers_per_token(config) == expected


def test_a_quarter_of_the_free_memory_is_filled_unless_a_step_takes_long(monkeypatch):
    model = make_llama()
    # 3 layers and one of them again, keys and values, two heads of 6 numbers, in float32; four
    # copies of 32 predictions
    assert bytes_per_window(model, 20) == 20 * 4 * (2 * 2 * 6) * 4 + 4 * 32 * 4
    free = 4 * 7.5 * bytes_per_window(model, 20)
    monkeypatch.setattr(at_once, "free_bytes", lambda device: free)
    assert windows_at_once(model, 20) == 7
    assert windows_at_once(model, 2000) == 1
    free *= 10**6
    assert windows_at_once(model, 20) == 256
    parameters = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(at_once, "_STEP_ON_CPU", 5.5 * parameters)  # as of a large model
    assert windows_at_once(model, 20) == 5


@pytest.fixture
def full(monkeypatch):
    """Make a model that finds memory for some windows only, after two tokens; and its batches."""

    def make(most, error):
        model, sizes = make_llama(), []
        forward = model.forward

        def counted(*args, **given):
            rows, place = len(given["input_ids"]), given["past_key_values"].get_seq_length()
            if place == 0:
                sizes.append(rows)
            if rows > most and place >= 2:
                raise error
            return forward(*args, **given)

        monkeypatch.setattr(model, "forward", counted)
        return model, sizes

    return make


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), CPU_FULL])
def test_where_memory_does_not_suffice_fewer_are_written_and_none_twice(full, monkeypatch, error):
    begin = [[5], [6], [7], [8], [9], [10], [11, 12], [13, 14], [15, 16]]
    expected = write(make_llama(), ORDINARY, begin=begin, window=12, seed=0)
    model, sizes = full(2, error)
    shown = []

    def counter(*args):
        shown.append(bars.counter(*args))
        return shown[-1]

    monkeypatch.setattr(writing, "counter", counter)
    with logged() as lines:
        assert write(model, ORDINARY, begin=begin, window=12, seed=0) == expected
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert "no memory for 6 windows at once: the model goes on with 3" in "".join(lines)


def test_the_bar_goes_back_by_what_was_lost(full, monkeypatch):
    model, _ = full(2, CPU_FULL)
    progress = SimpleNamespace(n=0)
    progress.update = lambda n: setattr(progress, "n", progress.n + n)
    monkeypatch.setattr(writing, "windows_at_once", lambda network, window: 4)
    places = []
    monkeypatch.setattr(
        writing, "_fewer", lambda n, window: places.append(progress.n) or max(1, n // 2)
    )

    class Counter:
        def __enter__(self):
            return progress

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(writing, "counter", lambda *args: Counter())
    write(model, ORDINARY, begin=[[5], [6], [7], [8]], window=9, seed=0)
    assert places == [0] and progress.n == 4 * 8


def test_one_window_that_does_not_fit_is_refused(full):
    model, sizes = full(0, CPU_FULL)
    with pytest.raises(CalibrationError, match="no memory for the model to write one window of 12"):
        write(model, ORDINARY, begin=[[5], [6]], window=12, seed=0)
    assert sizes == [2, 1]


def test_other_errors_are_not_taken_for_it(full):
    model, sizes = full(0, RuntimeError("a kernel failed"))
    with pytest.raises(RuntimeError, match="a kernel failed"):
        write(model, ORDINARY, begin=[[5], [6]], window=12, seed=0)
    assert sizes == [2]
