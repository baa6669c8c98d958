"""Groups of heads as a unit: cutting them is silencing them, and the config says what is left."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.adapters.attention import bind_attention
from funcnet_plugin.adapters.head_counts import possible_groups, set_heads
from funcnet_plugin.cut.activity import apply_mask
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import AdapterError
from tests.conftest import make_llama
from tests.families import FAMILIES

# What stands in the way, as the message names it.
REFUSED = {
    "olmo2": "k_norm.weight would be", "olmo3": "k_norm.weight would be",
    "stablelm": "it cannot be built", "helium": "other sizes",
} | dict.fromkeys(
    ("phi3", "gpt2", "gptj", "gpt_neox", "falcon", "opt", "phi", "persimmon"),
    "does not have the four projections",
)  # fmt: skip
DIVIDE = ("llama", "gemma2", "gemma3", "arcee")  # heads must divide the hidden size, 32
IDS = torch.randint(3, 32, (2, 20), generator=torch.Generator().manual_seed(1))


def build(name):
    family = FAMILIES[name]
    more = {"num_attention_heads": 8}
    if "num_key_value_heads" in family.settings:
        more["num_key_value_heads"] = 4
    return replace(family, settings=family.settings | more).build()


def units_of(model):
    return bind_attention(model, bind(model).adapter.layers)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_a_model_without_some_heads_is_saved_and_computes_as_if_they_were_silent(name, tmp_path):
    model = build(name)
    units = units_of(model)
    possible, width = possible_groups(model, units), units[0].width
    assert possible == ([1, 2] if name in DIVIDE else [*range(1, width)])
    keep = [0, *range(2, possible[-1] + 1)]  # not the first ones
    hooks = [apply_mask(unit, keep) for unit in units]
    silent = logits(model)
    for hook in hooks:
        hook.remove()
    before, one = model.num_parameters(), sum(unit.parameters_per_piece for unit in units)
    for unit in units:
        cut(unit, torch.tensor(keep))
    set_heads(model.config, units[0], len(keep))
    assert model.num_parameters() == before - (width - len(keep)) * one
    torch.testing.assert_close(logits(model), silent, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_attention_heads == len(keep) * units[0].query_heads
    assert torch.equal(logits(loaded), logits(model))
    written = [
        m.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=cache)
        for m, cache in ((model, True), (loaded, True), (loaded, False))
    ]
    assert all(torch.equal(other, written[0]) for other in written)
    if name != "gemma2":  # whose scores eager attention caps, and sdpa does not
        expected = logits(loaded)
        loaded.set_attn_implementation("eager")
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_say_it_is_refused_in_one_sentence(name):
    model = build(name)
    with pytest.raises(AdapterError, match=REFUSED[name]) as error:
        possible_groups(model, units_of(model))
    assert str(error.value).startswith("heads of ") and "\n" not in str(error.value)


def test_one_key_value_head_for_all_cannot_be_cut():
    model = make_llama(num_key_value_heads=1)
    with pytest.raises(AdapterError, match="all of a layer share one key-value head"):
        possible_groups(model, units_of(model))


def test_a_number_of_heads_that_transformers_would_not_load_is_left_out():
    model = make_llama(num_attention_heads=8, num_key_value_heads=8)  # of hidden size 24
    assert possible_groups(model, units_of(model)) == [1, 2, 3, 4, 6]
    model = make_llama(hidden_size=25, head_dim=4, num_attention_heads=5, num_key_value_heads=5)
    assert possible_groups(model, units_of(model)) == [1]


def test_a_group_owns_its_queries_keys_values_and_columns():
    unit = units_of(make_llama(num_attention_heads=6, num_key_value_heads=3, attention_bias=True))[
        1
    ]
    pieces = torch.tensor([0, 2])
    assert unit.rows_of(pieces, unit.key).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    own = [*range(8), *range(16, 24)]
    assert unit.rows_of(pieces, unit.query).tolist() == unit.columns_of(pieces).tolist() == own
    # 16 rows of 24 and a bias, and 8 columns of 24
    assert unit.parameters_per_piece == 16 * 25 + 8 * 24
    assert unit.parameters == 3 * unit.parameters_per_piece + 24
    rows = [torch.ones(24), torch.ones(12), 2 * torch.ones(12)]
    assert unit.by_piece(torch.ones(24), rows).tolist() == [8 + 8 + 4 + 8] * 3
