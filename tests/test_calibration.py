import json

import pytest

from funcnet_plugin.calibration import load_texts, make_loader, token_windows
from funcnet_plugin.errors import CalibrationError
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
