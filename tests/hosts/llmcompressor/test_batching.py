"""How many samples a run reads at once: chosen where it is left open, and without effect."""

import accelerate
import pytest
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.pipelines.cache import IntermediatesCache
from torch.utils.data import DataLoader

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.hosts.llmcompressor import width_pruning
from funcnet_plugin.measure.room import Room
from funcnet_plugin.text.windows import make_loader
from tests.conftest import make_tokenizer
from tests.hosting import networks, recipe, run
from tests.hosts.llmcompressor.test_quantization import W8A8

pytestmark = pytest.mark.usefixtures("forget_the_session")

LENGTHS = {"equal": [24] * 9, "padded": [24, 5, 17, 30, 9, 21, 3, 28, 12]}
EFFECT = recipe("WidthPruningModifier", scorer="effect", align=8)


def rows(lengths="equal") -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 32, (n,), generator=generator).tolist() for n in LENGTHS[lengths]]


def dataset(lengths="equal") -> Dataset:
    return Dataset.from_dict({"input_ids": rows(lengths)})


def alone(lengths="equal") -> DataLoader:
    return DataLoader([torch.tensor(row) for row in rows(lengths)], 1, collate_fn=_as_batch)


def _as_batch(samples):
    ids = torch.stack(samples)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def read(monkeypatch):
    """Shapes of the batches of every pass of the host's, one list for each."""
    passes = []
    fill = IntermediatesCache.from_dataloader

    def noted(batches, *args, **kwargs):
        passes.append([tuple(batch["input_ids"].shape) for batch in batches])
        return fill(batches, *args, **kwargs)

    monkeypatch.setattr(IntermediatesCache, "from_dataloader", noted)
    return passes


@pytest.fixture
def roomy(monkeypatch):
    """As on a GPU: padding is worth while."""
    monkeypatch.setattr(width_pruning, "room_for", lambda *args: Room(120, 0.9))


def mlps(model) -> list[torch.Tensor]:
    return [module.weight for block in bind(model).blocks for module in block.projections]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "fields",
    [
        {"scorer": "effect"},
        {"scorer": networks(samples_per_group=4, canica={"n_init": 2})},
        {"scorer": ["taylor", "surgeon"], "own_text": 0.25},
    ],
    ids=["effect", "networks", "gradients and own text"],
)
def test_the_chosen_batches_keep_the_same_neurons(fresh, read, roomy, lengths, fields):
    text = recipe("WidthPruningModifier", **fields, pruning_ratio=0.3)
    one = run(fresh(), None, text, dataset=alone(lengths))
    ours = run(fresh(), None, text, dataset=make_loader(rows(lengths)))
    assert all(map(torch.equal, mlps(one), mlps(ours)))
    by_one, together = read
    assert [shape[0] for shape in by_one] == [1] * 9
    assert len(together) < 5 and sum(shape[0] for shape in together) == 9
    assert max(samples * length for samples, length in together) <= 120


def test_a_dataset_is_read_in_batches_and_nothing_of_it_is_cut(fresh, read, roomy):
    run(fresh(), None, EFFECT, dataset=dataset("padded"), shuffle_calibration_samples=False)
    assert read == [[(4, 30), (5, 17)]]  # the host sorts by length: 30 28 24 21, 17 12 9 5 3


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_size_that_is_given_stays(fresh, read, roomy, size):
    for data in (dataset(), make_loader(rows(), size)):
        oneshot(
            model=fresh(), recipe=EFFECT, dataset=data, batch_size=size, tokenizer=make_tokenizer()
        )
    assert [[shape[0] for shape in one] for one in read] == [
        [1] * 9 if size == 1 else [2] * 4 + [1]
    ] * 2


def test_samples_with_more_than_tokens_stay_as_they_are(fresh, read, roomy):
    data = dataset().add_column("position_ids", [list(range(24))] * 9)
    run(fresh(), None, EFFECT, dataset=data)
    assert [shape[0] for shape in read[0]] == [1] * 9


def test_a_model_that_padding_would_mislead_gets_equal_lengths(fresh, read, roomy, monkeypatch):
    monkeypatch.setattr(width_pruning, "takes_padding", lambda *args: False)
    run(fresh(), None, EFFECT, dataset=make_loader([*rows("padded"), *rows()]))
    assert [shape for shape in read[0] if shape[0] > 1] == [(5, 24), (4, 24)]


def test_quantization_that_follows_reads_its_samples_one_by_one(fresh, read, roomy):
    text = recipe("WidthPruningModifier", scorer="effect", align=8, then=W8A8)
    ours = run(fresh(), None, text, dataset=make_loader(rows()))
    one = run(fresh(), None, text, dataset=alone())
    assert [len(one) for one in read] == [2, 9, 9, 9]
    assert all(map(torch.equal, mlps(ours), mlps(one)))


def test_a_batch_without_memory_says_which_size_to_give(fresh, roomy, monkeypatch):
    model = fresh()

    def full(module, args):
        if len(args[0]) > 2 and not args[0].is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(full)
    said = r"with 5 samples of 24 tokens at once; give batch_size=2 \(--batch-size 2\)"
    with pytest.raises(CalibrationError, match=said):
        run(model, None, EFFECT, dataset=make_loader(rows()))
    hook.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("way", ["cpu", "disk", "both"])
def test_a_model_that_accelerate_has_placed_is_pruned_like_one_in_memory(fresh, tmp_path, way):
    text = recipe("WidthPruningModifier", scorer=["taylor", "surgeon"], own_text=0.25)
    expected = run(fresh(), None, text, dataset=make_loader(rows()))
    model, cpu = fresh(), torch.device("cpu")
    if way == "cpu":
        accelerate.cpu_offload(model, execution_device=cpu)
    elif way == "disk":
        accelerate.disk_offload(model, tmp_path / "weights", execution_device=cpu)
    else:
        places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu"}
        places |= {"lm_head": "cpu", "model.layers.0": "cpu"}
        places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
        accelerate.dispatch_model(
            model, places, main_device="cpu", offload_dir=tmp_path / "weights", force_hooks=True
        )
    found = run(model, None, text, dataset=make_loader(rows()))
    assert all(map(torch.equal, mlps(found), mlps(expected)))
