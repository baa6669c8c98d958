"""Batches are a matter of memory: how samples are put together changes nothing that is kept."""

import pytest
import torch
from torch.utils.data import DataLoader

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.gradients import output_gradients, weight_gradients
from funcnet_plugin.measure.text import Text
from funcnet_plugin.peers.depth import block_influence, perplexity_without
from funcnet_plugin.peers.slicing import fuse_norms, principal_axes
from funcnet_plugin.score.parts import SCORERS
from tests.conftest import make_llama
from tests.hosting import networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
LENGTHS = {"equal": [24] * 9, "padded": [24, 5, 17, 30, 9, 21, 3, 28, 12]}


def padded(rows, left=False):
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def nine(lengths, batch_size, left=False):
    """Nine samples: the last of four in a batch stands alone."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 32, (n,), generator=generator) for n in lengths]
    return DataLoader(rows, batch_size, collate_fn=lambda batch: padded(batch, left))


def text_of(lengths, batch_size, left=False):
    return Text.read(nine(lengths, batch_size, left))


def kept(fresh, batch_size, lengths, name="WidthPruningModifier", **fields):
    """Kept neurons of every layer, found again by their rows of the up projection."""
    model = fresh()
    rows = [block.up.weight.detach().clone() for block in bind(model).blocks]
    run(model, None, recipe(name, **fields), dataset=nine(lengths, batch_size))
    return [
        [i for i, row in enumerate(dense) if (block.up.weight == row).all(1).any()]
        for dense, block in zip(rows, bind(model).blocks, strict=True)
    ]


APART = ("networks", "atlas")  # tried below; looks at no text


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("scorer", [name for name in SCORERS.all() if name not in APART])
def test_every_scorer_keeps_the_same_neurons(fresh, scorer, lengths):
    one, two, four = (
        kept(fresh, size, LENGTHS[lengths], scorer=scorer, pruning_ratio=0.3) for size in (1, 2, 4)
    )
    assert one == two == four


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "fields",
    [
        {"scorer": networks(samples_per_group=4, canica={"n_init": 2})},
        {"scorer": "surgeon", "allocation": "threshold"},
        {"scorer": ["taylor", "effect"], "own_text": 0.25},
    ],
    ids=["networks", "threshold", "own text"],
)
def test_so_do_networks_thresholds_and_own_text(fresh, fields, lengths):
    one, two, four = (kept(fresh, size, LENGTHS[lengths], **fields) for size in (1, 2, 4))
    assert one == two == four


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_gradients_are_means_over_tokens(lengths, left):
    """Against the sum over all tokens, sample by sample, without any padding."""
    model = make_llama()
    blocks = bind(model).blocks
    total, n = 0.0, 0
    for batch in nine(LENGTHS[lengths], 1):
        targets = batch["input_ids"].shape[1] - 1
        total = total + model(batch["input_ids"], labels=batch["input_ids"]).loss * targets
        n += targets
    weights = [module.weight for module in blocks[1].projections]
    expected = torch.autograd.grad(total / n, weights)
    for size in (1, 2, 4, 9):
        text = text_of(LENGTHS[lengths], size, left)
        for a, b in zip(weight_gradients(model, text, blocks)[1], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_a_sample_of_one_token_predicts_nothing_and_spoils_nothing():
    model = make_llama()
    blocks = bind(model).blocks
    texts = [text_of([9, 1, 12], size) for size in (1, 3)]
    with_it, together = (weight_gradients(model, text, blocks)[1] for text in texts)
    for a, b in zip(with_it, together, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    with_it, together = (output_gradients(model, text, blocks, seed=0)[1] for text in texts)
    torch.testing.assert_close(with_it, together, rtol=1e-3, atol=1e-8)
    nothing = text_of([1, 1], 1)
    with pytest.raises(CalibrationError, match="no calibration sample has a token after its first"):
        weight_gradients(model, nothing, blocks)
    with pytest.raises(CalibrationError, match="no calibration sample has a token after its first"):
        output_gradients(model, nothing, blocks, seed=0)


@pytest.mark.parametrize("measure", [block_influence, perplexity_without])
def test_layers_are_measured_alike(measure):
    model = make_llama()
    one, four = (
        measure(model, model.model.layers, text_of(LENGTHS["padded"], size)) for size in (1, 4)
    )
    assert one == pytest.approx(four, rel=1e-4)


def test_axes_are_alike():
    model = make_llama(tie_word_embeddings=False)
    fuse_norms(model)
    one, four = (principal_axes(model, text_of(LENGTHS["padded"], size)) for size in (1, 4))
    for a, b in zip(one, four, strict=True):  # up to sign
        torch.testing.assert_close((a.T @ b).abs(), torch.eye(len(a)).double(), rtol=0, atol=1e-2)
