"""More text for the repair, which the model writes by going on from pieces of the samples."""

import pytest
import torch

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair import distillation
from funcnet_plugin.repair.tuning import tune
from funcnet_plugin.text import own
from funcnet_plugin.text.own import write_continuations, write_own_text
from funcnet_plugin.text.windows import make_loader
from tests.conftest import make_llama
from tests.hosting import loader, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
FIELDS = {
    "name": "WidthPruningModifier",
    "scorer": "effect",
    "allocation": "threshold",
}


def continued(model, data, per_sample, seed):
    """Let a model go on from the samples of some batches: (n_windows, window)."""
    text = write_continuations(model, Text.read(data), per_sample, seed)
    return torch.cat([batch["input_ids"] for batch in text.batches])


def stands_in(piece, sample):
    """Whether `piece` is somewhere in `sample`, in one stretch."""
    return any(sample[i : i + len(piece)] == piece for i in range(len(sample)))


def test_each_goes_on_from_a_piece_of_its_sample(texts):
    model, data = make_llama(), loader(texts, samples=5, window=40)
    found = continued(model, data, 3, seed=0)
    assert found.shape == (15, 40)
    samples = torch.cat([batch["input_ids"] for batch in data]).tolist()
    pieces = found[:, :16].tolist()
    assert all(stands_in(p, samples[i // 3]) for i, p in enumerate(pieces))
    assert len(set(map(tuple, pieces))) > 10  # from anywhere in it
    assert not any(w in samples for w in found.tolist())
    assert torch.equal(found, continued(model, data, 3, seed=0))
    assert not torch.equal(found, continued(model, data, 3, seed=1))
    assert not torch.equal(found, write_own_text(model, Text.read(data), 0.5, seed=0).windows)


def test_samples_of_all_lengths_are_continued_in_their_order():
    """Half of a window at most is given; a sample that is shorter gives what it has."""
    samples = [[5, 6, 7, 8, 9, 10, 11, 12], [20], [13] * 6 + [14] * 6, [21, 22], [], [15] * 13]
    ids = torch.zeros(len(samples), 13, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)], mask[row, : len(sample)] = torch.tensor(sample), 1
    data = [{"input_ids": ids, "attention_mask": mask}]
    found = continued(make_llama(), data, 2, seed=0).tolist()
    assert len(found) == 12 and {len(window) for window in found} == {6}
    for i, window in enumerate(found):
        sample = samples[i // 2]
        assert not sample or stands_in(window[: min(3, len(sample))], sample)


@pytest.mark.parametrize(("length", "own_length"), [(40, 24), (16, 40)])
def test_tokens_count_as_those_of_the_samples_and_are_held_out_with_them(
    fresh, texts, monkeypatch, length, own_length
):
    seen = []

    def see(model, units, predicted, **options):
        seen.extend(predicted)
        return tune(model, units, predicted, **options)

    monkeypatch.setattr(distillation, "tune", see)
    monkeypatch.setattr(own, "CONTINUED_LENGTH", length)
    monkeypatch.setattr(own, "OWN_LENGTH", own_length)
    repair = {"name": "distillation", "continuations": 2}
    run(fresh(), texts, recipe(**FIELDS, repair=repair, own_text=0.4))
    by_weight = {}
    for window in seen:
        by_weight.setdefault(round(window.weight, 12), []).append(window)
    assert len(by_weight) == 2  # the own windows, and all else
    shares, counts = {}, {}
    for weight, alike in by_weight.items():
        sample = torch.cat([torch.full((len(w.ids),), w.sample) for w in alike])
        shares[len(sample)] = pytest.approx(weight * len(sample), rel=1e-5)
        counts[len(sample)] = torch.bincount(sample).tolist()
    # 20 samples of 40 tokens, each with two that go on from it, and three own windows
    each = 40 + 2 * length
    assert shares == {20 * each: 0.6, 20 * 3 * own_length: 0.4}
    assert counts == {20 * each: [each] * 20, 20 * 3 * own_length: [3 * own_length] * 20}


def test_samples_of_one_token_cannot_be_continued(fresh):
    with pytest.raises(CalibrationError, match="too short for the model to write in"):
        continued(fresh(), make_loader([[5]] * 4), 1, seed=0)
