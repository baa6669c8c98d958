import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.sources import load_sources, load_texts
from funcnet_plugin.text.windows import make_loader, mixed_windows, token_windows
from tests.conftest import make_tokenizer


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_json_lines_and_lists_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    rows = write(tmp_path / "b.jsonl", {"text": "x"}, {"text": "  \n"}, {"text": "y"})
    assert load_texts(tmp_path / "a.txt") == ["one\ntwo"]
    assert load_texts(str(rows)) == ["x", "y"]
    assert load_texts(write(tmp_path / "c.jsonl", {"page": "z"}), "page") == ["z"]
    assert load_texts(["", "w"]) == ["w"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "missing.jsonl", "missing.jsonl does not exist"),
        (lambda d: "/nowhere/text", "/nowhere/text does not exist"),
        (lambda d: d, "is a directory"),
        (lambda d: write(d / "e.jsonl"), "holds no text"),
        (lambda d: write(d / "blank.jsonl", {"text": " "}, {"text": "\n"}), "holds no text"),
        (lambda d: write(d / "p.jsonl", {"page": "z", "id": 1}), "no column 'text' but page, id"),
        (lambda d: write(d / "n.jsonl", {"text": 3}), "does not hold text"),
        (lambda d: (d / "bad.jsonl").write_text("{oops") and d / "bad.jsonl", "not valid JSON"),
        (lambda d: (d / "x.txt").write_bytes(b"\xff\xfe\xfa") and d / "x.txt", "not UTF-8"),
        (lambda d: "no-such-dataset-anywhere", "neither a file nor a dataset"),
        (lambda d: [], "holds no text"),
    ],
)
def test_bad_sources_are_one_clear_sentence(tmp_path, make, message):
    with pytest.raises(CalibrationError, match=message) as error:
        load_texts(make(tmp_path))
    assert "\n" not in str(error.value)


def test_windows_are_full_distinct_and_reproducible(texts):
    tokenizer = make_tokenizer()
    windows = token_windows(texts, tokenizer, window=50, samples=20, seed=3)
    assert len(windows) == 20 and {len(w) for w in windows} == {50}
    assert len({tuple(w) for w in windows}) == 20
    assert windows == token_windows(texts, tokenizer, window=50, samples=20, seed=3)
    assert windows != token_windows(texts, tokenizer, window=50, samples=20, seed=4)
    everything = token_windows(texts, tokenizer, window=50, samples=10_000, seed=0)
    assert len(everything) == 12 * 600 // 50


def test_too_little_text_for_one_window():
    with pytest.raises(CalibrationError, match="has 5 tokens and one sample needs 50"):
        token_windows(["abcde"], make_tokenizer(), window=50, samples=1, seed=0)


def test_the_loader_keeps_the_order():
    windows = [[i] * 4 for i in range(5)]
    batches = list(make_loader(windows, batch_size=2))
    assert [b["input_ids"][:, 0].tolist() for b in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0]["attention_mask"].tolist() == [[1] * 4] * 2


def test_a_model_writes_its_own_calibration_text(checkpoint):
    options = {"window": 12, "samples": 5, "model": checkpoint}
    tokenizer = make_tokenizer()
    written = mixed_windows([("self", 1.0)], tokenizer, seed=0, **options)
    assert len(written) == 5 and {len(w) for w in written} == {12}
    assert not {t for w in written for t in w} & set(tokenizer.all_special_ids)
    assert len({w[0] for w in written}) > 1  # each begins with another token
    assert mixed_windows([("self", 1.0)], tokenizer, seed=0, **options) == written
    assert mixed_windows([("self", 1.0)], tokenizer, seed=1, **options) != written


def test_own_text_is_likely_for_the_model(checkpoint):
    """It samples its own distribution: far likelier than random tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    options = {"window": 30, "samples": 8, "seed": 0, "model": checkpoint}
    own = torch.tensor(mixed_windows([("self", 1.0)], make_tokenizer(), **options))
    anything = torch.randint(3, 32, own.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(own, labels=own).loss < model(anything, labels=anything).loss - 0.5


def test_own_text_is_mixed_with_files_by_share(checkpoint, texts):
    sources = [*load_sources({"self": 1.0}), (texts, 1.0)]
    assert sources[0] == ("self", 1.0)
    windows = mixed_windows(
        [("self", 0.25), (texts, 0.75)], make_tokenizer(), window=20, samples=8, seed=0,
        model=checkpoint,
    )  # fmt: skip
    alone = mixed_windows(
        [("self", 1.0)], make_tokenizer(), window=20, samples=2, seed=0, model=checkpoint
    )
    assert len(windows) == 8 and all(w in windows for w in alone)


def test_a_window_that_is_too_short_to_write_is_refused(checkpoint):
    with pytest.raises(CalibrationError, match="too short"):
        mixed_windows(
            [("self", 1.0)], make_tokenizer(), window=1, samples=1, seed=0, model=checkpoint
        )
