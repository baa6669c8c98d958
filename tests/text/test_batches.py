"""What is wrong with calibration data is said in one sentence, before any layer is looked at."""

import random

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from llmcompressor import oneshot
from torch.utils.data import DataLoader, IterableDataset

from funcnet_plugin.errors import CalibrationError, FuncnetError
from funcnet_plugin.evaluation.perplexity import text_windows
from funcnet_plugin.text.batches import read_calibration
from tests.conftest import make_tokenizer
from tests.hosting import loader, networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
IDS = torch.randint(3, 32, (8, 12), generator=torch.Generator().manual_seed(0))
ONES = torch.ones_like(IDS)
ALL_BUT_5 = ONES * (torch.arange(8) != 5)[:, None]
WIDTH = recipe("WidthPruningModifier", scorer="effect")
DEPTH = "s_stage:\n  p_modifiers:\n    DepthPruningModifier: {pruning_ratio: 0.2}\n"


class Endless(IterableDataset):
    """Can be read again and again, but has no length."""

    def __iter__(self):
        return iter([{"input_ids": row} for row in IDS])


class Once(IterableDataset):
    def __init__(self):
        self.rows = ({"input_ids": row} for row in IDS)

    def __iter__(self):
        return self.rows

    def __len__(self):
        return len(IDS)


def batches(*found):
    return DataLoader(list(found), batch_size=None, collate_fn=lambda batch: batch)


def texts():
    return ["abc def", "ghi jkl"]


@pytest.mark.parametrize(
    "text", [recipe(scorer=networks(samples_per_group=2)), WIDTH, DEPTH], ids="nwd"
)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: batches({"input_ids": IDS, "attention_mask": ALL_BUT_5}), "all padding, number 5"),
        (lambda: batches({"input_ids": IDS}, {"input_ids": IDS[:1, :0]}), "1 .* an empty sample"),
        (lambda: batches({"input_ids": IDS.flatten()}), r"shape \(96,\)"),
        (lambda: batches({"input_ids": IDS.float()}), "float32 where whole numbers"),
        (lambda: batches({"input_ids": IDS.tolist()}), "a list as input_ids"),
        (lambda: batches({"input_ids": IDS + 20}), "the model has the tokens 0 to 31"),
        (lambda: batches({"input_ids": IDS.where(IDS > 9, -100)}), "has token -100"),
        (lambda: batches({"input_ids": IDS, "attention_mask": ONES[:, :-1]}), "must be alike"),
        (lambda: batches({"input_ids": IDS, "attention_mask": ONES[0]}), "must be alike"),
        (lambda: batches({"labels": IDS}), "no input_ids but labels"),
        (lambda: batches((IDS, ONES)), "is a tuple and should be a dictionary"),
        (lambda: batches(IDS), "is a Tensor and should be a dictionary"),
        (lambda: batches({"input_ids": IDS[:, :1]}), "longer than one token"),
        (lambda: batches(), "is empty"),
        (lambda: DataLoader(Endless()), "iterable Endless without a length"),
        (lambda: DataLoader(Once()), "Once that can be read once only"),
        (lambda: Dataset.from_dict({"input_ids": []}), "is empty"),
        (lambda: Dataset.from_dict({"input_ids": [[3, 4], []]}), "empty sample"),
        (lambda: Dataset.from_dict({"page": texts()}), "nor a column 'text' but page"),
        (lambda: Dataset.from_dict({"text": texts()}), "has no maximal length"),
        (lambda: Dataset.from_dict({"text": texts()}).to_iterable_dataset(), "streaming dataset"),
        (lambda: datasets.DatasetDict(train=Dataset.from_dict({"text": []})), "is empty"),
        (lambda: datasets.DatasetDict(test=Dataset.from_dict({"text": ["a"]})), "splits test and"),
        (lambda: Dataset.from_dict({"text": ["a", None]}), "row 1 .* holds nothing in .*'text'"),
        (lambda: Dataset.from_dict({"text": [1, 2]}), "'text' of the dataset holds int64 where"),
        (lambda: Dataset.from_dict({"text": [["a"]]}), "'text' of the dataset holds list where"),
        (lambda: Dataset.from_dict({"input_ids": ["a"]}), "'input_ids' .* holds string where"),
        (lambda: Dataset.from_dict({"input_ids": [[3, 4], None]}), "row 1 .* holds nothing in"),
        (lambda: DataLoader(IDS, batch_size=99, drop_last=True), "no batch: .* drop_last"),
        (texts, "a list of texts; give"),
        (lambda: [{"text": text} for text in texts()], "a list of records; give"),
        (lambda: (text for text in texts()), "a generator, which can be read once only"),
        (lambda: IDS, "a Tensor; give"),
        (lambda: 3, "a int, which holds no samples"),
        (lambda: "no such data", "no dataset called 'no such data'"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(fresh, text, make, message):
    model = fresh()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(CalibrationError, match=message) as error:
        oneshot(model=model, recipe=text, dataset=make(), tokenizer=make_tokenizer())
    assert "\n" not in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_calibration_samples": 0}, "num_calibration_samples=0 is none"),
        ({"text_column": "page"}, "reads the column 'text' where there is one, and not 'page'"),
    ],
)
def test_what_oneshot_is_told_of_the_data(fresh, given, message):
    rows = Dataset.from_dict({"text": texts(), "page": texts()})
    with pytest.raises(CalibrationError, match=message):
        oneshot(model=fresh(), recipe=WIDTH, dataset=rows, tokenizer=make_tokenizer(), **given)


def test_a_model_without_a_tokenizer_is_said_so(fresh, tmp_path):
    fresh().save_pretrained(tmp_path)
    rows = Dataset.from_dict({"input_ids": IDS.tolist()})
    with pytest.raises(CalibrationError, match=r"without a tokenizer .*; give tokenizer="):
        oneshot(model=str(tmp_path), recipe=WIDTH, dataset=rows)


def test_text_without_text_is_found_before_the_work(fresh):
    """As datasets make it of a file with blank lines."""
    rows = Dataset.from_dict({"text": ["abc def", "", "ghi"]})
    with pytest.raises(CalibrationError, match="empty sample"):
        run(fresh(), None, WIDTH, dataset=rows, max_seq_length=64, batch_size=1)


def test_padding_beside_text_is_no_mistake(fresh):
    mask = ONES.clone()
    mask[:, :7] = 0
    data = batches(*({"input_ids": i, "attention_mask": m} for i, m in zip(
        IDS.split(2), mask.split(2), strict=True
    )))  # fmt: skip
    assert list(map(len, read_calibration(data, fresh()).samples)) == [5] * 8


def test_looking_changes_nothing(fresh):
    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return len(IDS)

        def __getitem__(self, index):
            random.random(), np.random.rand(), torch.rand(1)
            return {"input_ids": IDS[index]}

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1)

    def data():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(Drawing(), batch_size=2, shuffle=True, generator=generator)

    def seen(data):
        return torch.cat([batch["input_ids"] for batch in data])

    model = fresh()
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(1)
    expected, draws = seen(data()), drawn()
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(1)
    looked_at = data()
    assert len(read_calibration(looked_at, model).samples) == 8
    assert torch.equal(seen(looked_at), expected)
    assert drawn() == draws


def test_too_few_tokens_for_the_networks(fresh, texts):
    with pytest.raises(CalibrationError, match="n_components=6 does not fit signals of 4 tokens"):
        run(
            fresh(),
            None,
            recipe(scorer=networks(samples_per_group=2)),
            dataset=loader(texts, 8, window=2),
        )


def test_a_dead_layer_is_named(fresh, texts):
    model = fresh()
    for weight in model.model.layers[1].mlp.parameters():
        weight.data.zero_()
    with pytest.raises(FuncnetError, match="the MLP of layer 1 is dead") as error:
        run(model, texts)
    assert "ignore: [model.layers.1.mlp]" in str(error.value)
    run(model, texts, recipe(ignore=["model.layers.1.mlp"]))
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers][1] == 48


def test_constant_signals_name_their_layer(fresh, texts):
    model = fresh()
    model.model.embed_tokens.weight.data.zero_()
    with pytest.raises(FuncnetError, match=r"^layer 0: no neuron varies"):
        run(model, texts)


def test_ignore_that_names_all_is_said_so(fresh, texts):
    with pytest.raises(FuncnetError, match="ignore names every one of the 3 MLPs"):
        run(fresh(), texts, recipe(ignore=["re:.*mlp.*"]))


def test_a_window_with_nothing_to_predict_is_refused(texts):
    with pytest.raises(CalibrationError, match="nothing to predict"):
        text_windows(texts, "text", make_tokenizer(), 1, 4)
