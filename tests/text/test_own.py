"""A share of the calibration that the model writes itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError, RecipeError
from funcnet_plugin.measure.dense_moments import moments_of
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.least_squares import least_squares
from funcnet_plugin.repair.none import NoRepair
from funcnet_plugin.run import Request
from funcnet_plugin.run.ahead import measure_ahead
from funcnet_plugin.run.clock import Clock
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.text import own, writing
from funcnet_plugin.text.own import write_continuations, write_own_text
from funcnet_plugin.text.windows import make_loader
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, logits, networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
FIELDS = {
    "scorer": "surgeon",
    "allocation": "threshold",
    "repair": "least_squares",
    "align": 8,
}


def own_windows(model, data, seed):
    """Let a model write for the batches of a loader."""
    return write_own_text(model, Text.read(data), 0.5, seed).windows


def own_moments(model, text, share):
    """Measure what a run measures of the text that the model writes for it, layer by layer."""
    units = bind(model).blocks
    request = Request(0.2, (SCORERS.make("effect"),), NoRepair(), own_text=share)
    return measure_ahead(request, model, units, units, text, None, None, None, Clock()).own_moments


@pytest.fixture
def written(monkeypatch):
    """What a model was asked to write, and what it wrote."""
    found = []

    def write(network, ordinary, **asked):
        found.append((asked, writing.write(network, ordinary, **asked)))
        return found[-1][1]

    monkeypatch.setattr(own, "write", write)
    return found


def test_windows_are_as_long_as_the_samples_without_their_padding(texts, written):
    model = make_llama()
    padded = [
        {key: torch.cat([value, torch.zeros_like(value)], 1) for key, value in batch.items()}
        for batch in loader(texts, samples=4, window=20)
    ]
    found = own_windows(model, padded, seed=0)
    (asked, windows) = written[0]
    assert asked["window"] == 20 and found.shape == (12, 20)
    assert found.tolist() == windows
    assert not {0, 1, 2} & {token for w in windows for token in w}  # padding, begin, end


def test_each_begins_with_a_token_of_its_sample(texts):
    model = make_llama()
    data = loader(texts, samples=5, window=24)
    found = own_windows(model, data, seed=0)
    samples = torch.cat([batch["input_ids"] for batch in data])
    for sample, windows in zip(samples, found.split(own.PER_SAMPLE), strict=True):
        assert set(windows[:, 0].tolist()) <= set(sample.tolist()) - {0, 1, 2}
    assert not torch.equal(found[:, 0], own_windows(model, data, seed=1)[:, 0])
    assert torch.equal(found, own_windows(model, data, seed=0))


def test_a_sample_of_special_tokens_begins_with_any(texts):
    ids = torch.ones(4, 12, dtype=torch.long)  # the beginning-of-sequence token and nothing else
    found = own_windows(make_llama(), make_loader(ids.tolist()), seed=0)
    assert found[:, 0].min() > 2 and len(set(found[:, 0].tolist())) > 1


def test_habits_of_the_generation_config_do_not_enter_the_text(texts):
    """Its penalties, beams and forced tokens are for chats; the model's own text has none."""
    model, data = make_llama(), loader(texts, samples=4, window=30)
    found = own_windows(model, data, seed=0)
    habits = GenerationConfig(
        repetition_penalty=1.5, num_beams=2, min_p=0.3, forced_eos_token_id=2,
        return_dict_in_generate=True, max_length=12,
    )  # fmt: skip
    model.generation_config = habits
    assert torch.equal(own_windows(model, data, seed=0), found)
    assert model.generation_config is habits


def test_own_text_is_likely_for_the_model(texts):
    """It samples its own distribution: far likelier than random tokens."""
    model = make_llama()
    written = own_windows(model, loader(texts, samples=8, window=30), seed=0)
    anything = torch.randint(3, 32, written.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(written, labels=written).loss < model(anything, labels=anything).loss - 0.5


def test_a_window_that_is_too_short_to_write_is_refused():
    with pytest.raises(CalibrationError, match="too short"):
        own_windows(make_llama(), make_loader([[5]] * 4), seed=0)


def test_windows_of_long_samples_are_shorter(texts, monkeypatch):
    """One length is enough; what is written for longer samples begins like it."""
    model, data = make_llama(), loader(texts, samples=4, window=96)
    monkeypatch.setattr(own, "CONTINUED_LENGTH", 48)
    assert own_windows(model, data, seed=0).shape == (12, 64)
    continued = write_continuations(model, Text.read(data), 2, seed=0).batches[0]["input_ids"]
    assert continued.shape == (8, 48)
    short, long = (own_windows(model, loader(texts, window=n), seed=0) for n in (16, 40))
    assert short.shape[1] == 16 and long.shape[1] == 40


def test_a_model_that_was_being_trained_is_measured_without_dropout(texts, tmp_path):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path / "dense")
    text = recipe("WidthPruningModifier", own_text=0.5, **FIELDS | {"repair": "distillation"})

    def pruned(training):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").train(training)
        found = run(model, texts, text)
        assert found.training == training
        return logits(found.eval())

    assert torch.equal(pruned(True), pruned(False))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_the_share_is_that_of_the_tokens(texts, share):
    model = make_llama()
    text = Text.read(loader(texts, samples=6, window=30))
    found = own_moments(model, text, share)
    own_text = write_own_text(model, text, share, seed=0)
    blocks = bind(model).blocks
    for index, moments in moments_of(model, blocks, own_text.text, blocks).items():
        assert found[index].count == round(180 * share / (1 - share))
        torch.testing.assert_close(found[index].second, moments.second)
        torch.testing.assert_close(found[index].mean, moments.mean)


@pytest.mark.parametrize("allocation", ["threshold", "uniform"])
def test_the_repair_fits_both_texts(fresh, texts, allocation):
    """The down projection of every layer is the one that least squares gives on the mean of the
    calibration windows' moments and the written ones', in the dense model: with own text equal
    widths wait for all layers too."""
    text = recipe("WidthPruningModifier", own_text=0.5, **FIELDS | {"allocation": allocation})
    dense, pruned = fresh(), run(fresh(), texts, text)
    data = Text.read(loader(texts))
    written = own_moments(dense, data, 0.5)
    given = moments_of(dense, bind(dense).blocks, data, bind(dense).blocks)
    for before, after in zip(bind(dense).blocks, bind(pruned).blocks, strict=True):
        rows = [
            next(i for i, old in enumerate(before.up.weight) if torch.equal(old, row))
            for row in after.up.weight
        ]
        second = 0.5 * (written[before.index].second + given[before.index].second)
        expected = least_squares(before.down.weight, second, torch.tensor(rows), 0.02)
        torch.testing.assert_close(
            after.down.weight.double(), expected, rtol=1e-3, atol=1e-4, check_dtype=False
        )
    assert pruned.config.functional_network["settings"]["own_text"] == 0.5


@pytest.mark.parametrize("name", ["WidthPruningModifier", "FunctionalNetworkModifier"])
@pytest.mark.parametrize("family", ["llama", "chatglm", "gpt2", "opt"])
def test_every_layout_writes(texts, tmp_path, family, name):
    FAMILIES[family].build().save_pretrained(tmp_path / "dense")
    fields = dict(FIELDS)
    if name == "FunctionalNetworkModifier":
        fields["scorer"] = [networks(strategy="global"), "surgeon"]
    text = recipe(name, own_text=0.5, pruning_ratio=0.1, **fields)
    model = run(str(tmp_path / "dense"), texts, text)
    without = run(str(tmp_path / "dense"), texts, text.replace("own_text: 0.5", "own_text: 0.0"))
    assert torch.isfinite(logits(model)).all()
    assert not torch.equal(logits(model), logits(without))


def test_a_share_that_nothing_looks_at_is_refused(fresh, texts):
    fields = {"scorer": "random", "allocation": "threshold", "repair": "none"}
    with pytest.raises(RecipeError, match="own_text is for scorers that look at activations and"):
        run(fresh(), texts, recipe("WidthPruningModifier", own_text=0.5, **fields))
