"""Repairs behind pruned layers: the dense and the pruned model side by side."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.measure.streams import Streams
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.gain import residual_gain
from funcnet_plugin.repair.least_squares import least_squares
from tests.families import FAMILIES
from tests.hosting import kept_by_effect, kept_of, loader, logits, recipe, run
from tests.repair.data import BEHIND_A_NORM, FIELDS, padded_batches, seen_by

pytestmark = pytest.mark.usefixtures("forget_the_session", "refitted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gain_of_every_family(family, dtype):
    model = FAMILIES[family].build(dtype)
    gain = residual_gain(model, bind(model).blocks, padded_batches()[0])
    if family in BEHIND_A_NORM:
        assert gain is None
    else:
        assert gain == pytest.approx(1.0, abs=1e-5 if dtype == torch.float32 else 0.01)
    assert not bind(model).blocks[0].down._forward_hooks


def test_a_multiplier_is_found():
    family = FAMILIES["granite"]
    family.settings["residual_multiplier"] = 0.22
    try:
        model = family.build()
    finally:
        del family.settings["residual_multiplier"]
    gain = residual_gain(model, bind(model).blocks, padded_batches()[0])
    assert gain == pytest.approx(0.22, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_are_what_the_whole_models_see(family):
    """Layer after layer, against two copies that are run as a whole."""
    dense, pruned = FAMILIES[family].build(), FAMILIES[family].build()
    keep = torch.arange(0, bind(pruned).blocks[0].width, 2)
    for block in bind(pruned).blocks:
        cut(block, keep)
    _, before = seen_by(dense, padded_batches(), lambda b: b.down)
    inner, after = seen_by(pruned, padded_batches(), lambda b: b.down)
    model = FAMILIES[family].build()
    blocks = bind(model).blocks
    with torch.no_grad():
        streams = Streams(model, blocks, Text.read(padded_batches()))
        for block in blocks:
            streams.pass_dense(block)
            cut(block, keep)
            found = list(streams.differences(block))
            h = torch.cat([missing.h for missing in found])
            error = torch.cat([missing.error for missing in found])
            scale = before[block.index].abs().max()
            torch.testing.assert_close(h, inner[block.index], rtol=1e-3, atol=1e-4)
            expected = before[block.index] - after[block.index]
            assert (error - expected).abs().max() < 1e-5 * scale
            streams.pass_pruned(block)
    assert streams.n_tokens == 2 * 12 + 2 * 7


def test_every_layer_makes_up_for_what_is_left_of_the_error(fresh, texts):
    """The weights of a run, against least squares on two copies that are run as a whole."""
    data = list(loader(texts))
    kept_at, pruned = {}, run(fresh(), texts, recipe(**FIELDS))
    dense, copy = fresh(), fresh()
    for before, after in zip(bind(dense).blocks, bind(pruned).blocks, strict=True):
        kept_at[before.index] = torch.tensor(
            [
                next(i for i, old in enumerate(before.up.weight) if torch.equal(old, row))
                for row in after.up.weight
            ]
        )
    h_dense, stream = seen_by(dense, data, lambda b: b.down)
    for block, original, expected in zip(
        bind(copy).blocks, bind(dense).blocks, bind(pruned).blocks, strict=True
    ):
        keep, h = kept_at[block.index], h_dense[block.index].double()
        weight = original.down.weight.detach()
        cut(block, keep, least_squares(weight, h.T @ h / len(h), keep, 0.02))
        inner, output = seen_by(copy, data, lambda b: b.down)
        h = inner[block.index].double()
        error = (stream[block.index] - output[block.index]).double()
        damping = 0.02 * h.square().sum() / h.shape[1]
        solved = torch.linalg.solve(h.T @ h + damping * torch.eye(h.shape[1]), h.T @ error)
        block.down.weight.data += solved.T.float()
        torch.testing.assert_close(
            block.down.weight, expected.down.weight, rtol=1e-3, atol=1e-4, check_dtype=False
        )
    assert len({tuple(keep.tolist()) for keep in kept_at.values()}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_hidden_states_come_closer(family, texts, tmp_path):
    """Than with least squares of each MLP alone, on the calibration text."""
    FAMILIES[family].build().save_pretrained(tmp_path / "dense")
    dense = FAMILIES[family].build()
    last = bind(dense).blocks[-1].index
    expected = seen_by(dense, list(loader(texts)), lambda b: b.down)[1][last]
    errors, weights = [], []
    for repair in ("least_squares", "refitted"):
        text = recipe(**FIELDS | {"repair": repair}, pruning_ratio=0.1, align=8)
        model = run(str(tmp_path / "dense"), texts, text)
        found = seen_by(model, list(loader(texts)), lambda b: b.down)[1][last]
        errors.append(float((found - expected).square().mean()))
        weights.append([b.output_weight.detach() for b in bind(model).blocks])
    if family in BEHIND_A_NORM:
        assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    else:
        assert errors[1] < 0.95 * errors[0]


def test_widths_may_be_equal(fresh, texts, tmp_path):
    """All layers are measured before the cut then too: on the dense model."""
    text = recipe(**FIELDS | {"allocation": "uniform", "pruning_ratio": 0.4})
    model = run(fresh(), texts, text)
    (width,) = set(bind(model).widths)
    assert kept_of(model, tmp_path) == kept_by_effect(fresh(), loader(texts), width)


def test_layers_that_are_ignored_stay_as_they_are(fresh, texts):
    model = run(
        fresh(),
        texts,
        recipe(**FIELDS, skip_first=1, pruning_ratio=0.1, ignore=["model.layers.2.mlp"]),
    )
    dense = dict(fresh().named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dense[name]) == ("layers.1.mlp" not in name), name


def test_what_was_found_is_written_down(fresh, texts):
    model = run(fresh(), texts, recipe(**FIELDS | {"allocation": "uniform"}))
    found = model.config.functional_network["measured"]["refitted"]
    assert len(found) == 3 and all(0 < share < 1 for share in found)


def test_batches_do_not_matter(fresh, texts):
    one, four = (run(fresh(), texts, recipe(**FIELDS), batch_size=n) for n in (1, 4))
    torch.testing.assert_close(logits(one), logits(four), rtol=1e-4, atol=1e-4)


def test_own_text_counts_by_its_share(fresh, texts):
    found = [run(fresh(), texts, recipe(**FIELDS, own_text=share)) for share in (0.0, 0.01, 0.5)]
    little, half = ((logits(m) - logits(found[0])).abs().mean() for m in found[1:])
    assert 0 < little < 0.3 * half
