"""How samples come together: in their order, within what memory and speed allow."""

from functools import wraps

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure import layer_calls, padding, room
from funcnet_plugin.measure.joining import joined
from funcnet_plugin.measure.padding import takes_padding
from funcnet_plugin.measure.room import Limit, Room, room_for
from funcnet_plugin.measure.text import Text
from tests.conftest import make_llama
from tests.families import FAMILIES

CPU = torch.device("cpu")


def text_of(lengths, **fields) -> Text:
    ids = torch.arange(3, 3 + sum(lengths)).split(list(lengths))
    return Text(tuple({"input_ids": row[None]} for row in ids), **fields)


def shapes(batches) -> list[tuple[int, int]]:
    return [tuple(batch["input_ids"].shape) for batch in batches]


def test_neighbours_come_together_in_their_order():
    text = text_of([4, 4, 4, 2, 4, 3], may_join=True, may_pad=True)
    batches = joined(text, Room(12, 0.5))
    assert shapes(batches) == [(3, 4), (3, 4)]
    assert Text.read(batches).samples == text.samples
    assert batches[1]["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_without_padding_only_equal_lengths_do():
    text = text_of([4, 4, 3, 4], may_join=True)
    assert shapes(joined(text, Room(100, 0.9))) == [(2, 4), (1, 3), (1, 4)]


def test_padding_has_its_limit():
    text = text_of([8, 4, 2], may_join=True, may_pad=True)
    assert shapes(joined(text, Room(100, 0.25))) == [(2, 8), (1, 2)]


def test_batches_that_are_not_ours_stay():
    text = text_of([4, 4])
    assert joined(text, Room(100, 0.5)) == list(text.batches)


def test_masks_of_pairs_stay_alone():
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    of_pairs = batch | {"attention_mask": torch.ones(1, 1, 4, 4)}
    text = Text((batch, of_pairs, batch), may_join=True, may_pad=True)
    assert shapes(joined(text, Room(100, 0.5))) == [(1, 4)] * 3


def test_a_sample_that_is_too_large_stands_alone():
    text = text_of([9, 9], may_join=True)
    assert shapes(joined(text, Room(4, 0.5))) == [(1, 9), (1, 9)]


def test_memory_of_pairs_grows_with_the_square_of_the_length():
    limit = Limit(bytes=400, per_token=0, per_pair=1)
    assert limit.holds(4, 10) and limit.holds(1, 20)
    assert not limit.holds(5, 10) and not limit.holds(2, 20)


@pytest.mark.parametrize("free", [0.0, 1e6, 1e12])
def test_less_free_memory_holds_fewer_tokens(monkeypatch, free):
    model = make_llama()
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    found = room_for(model, bind(model).blocks, torch.device("cuda"))
    most = max((n for n in range(1, 2000) if found.holds(n, 16)), default=0)
    assert most == {0.0: 0, 1e12: 16384 // 16}.get(free, most)
    assert (0 < most < 1024) == (free == 1e6)


def test_a_loss_takes_more_and_layers_that_are_computed_again_less(monkeypatch):
    model = make_llama(vocab_size=4096)
    blocks = bind(model).blocks
    monkeypatch.setattr(room, "free_bytes", lambda device: 1e8)

    def per_token(**options):
        return room_for(model, blocks, torch.device("cuda"), **options).limits[0].per_token

    plain, back = per_token(), per_token(backward=True)
    again = per_token(backward=True, checkpointed=True)
    assert plain + 4096 * 12 < again < back


def test_on_a_cpu_batches_stay_small(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 10**15)
    model = make_llama(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    found = room_for(model, bind(model).blocks, CPU)
    assert found.holds(4, 64) and not found.holds(64, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_is_taken_by_every_family(family):
    model = FAMILIES[family].build()
    assert takes_padding(model, bind(model).blocks, text_of([9]))


def test_a_model_whose_layers_see_no_mask_does_not_take_padding(monkeypatch):
    model = make_llama()
    monkeypatch.setattr(layer_calls.LayerCall, "attention_mask", lambda self, unit: None)
    assert not takes_padding(model, bind(model).blocks, text_of([9]))


def test_a_model_that_looks_at_later_tokens_does_not_take_padding(monkeypatch):
    """Its layers are told which tokens are padding, and look there all the same."""
    model = make_llama()
    layer = model.model.layers[0]
    forward = layer.forward

    @wraps(forward)
    def both_ways(hidden_states, **kwargs):
        return forward(hidden_states, **kwargs) + hidden_states.mean(1, keepdim=True)

    monkeypatch.setattr(layer, "forward", both_ways)
    assert not takes_padding(model, bind(model).blocks, text_of([9]))


def test_a_mask_that_cannot_be_read_is_no_mask(monkeypatch):
    model = make_llama()
    monkeypatch.setattr(layer_calls.LayerCall, "attention_mask", lambda self, unit: object())
    assert not padding.takes_padding(model, bind(model).blocks, text_of([9]))
