"""Calibration text from files, lists and datasets, and what is said where there is none."""

import json

import pytest

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text.sources import load_documents, load_texts, parse_sources


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
    ("fields", "titles"),
    [
        (({}, {}), [None, None]),
        (({"title": "One", "id": 7}, {"title": None, "id": 8}), ["One", "8"]),
        (({"title": ["no", "title"]}, {"title": []}), [None, None]),
    ],
)
def test_documents_know_their_record(tmp_path, fields, titles):
    first, last = fields
    rows = [{"text": "x"} | first, {"text": " "} | first, {"text": "y"} | last]
    path = str(write(tmp_path / "rows.jsonl", *rows))
    found = load_documents(path)
    assert [(d.text, d.source, d.record) for d in found] == [("x", path, 1), ("y", path, 3)]
    assert [d.title for d in found] == titles


def test_a_file_of_text_is_one_document_and_the_text_is_no_title(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (found,) = load_documents(tmp_path / "a.txt")
    assert found == ("one", str(tmp_path / "a.txt"), None, None)
    (found, _) = load_documents([{"title": "x"}, {"title": "y"}], "title")
    assert found == ("x", "the given texts", 1, None)


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


def test_shares_are_read_from_the_command_line():
    assert parse_sources(["a.jsonl:0.5", "b.jsonl"]) == {"a.jsonl": 0.5, "b.jsonl": 1.0}
    assert parse_sources(["wikitext:wikitext-2-v1:train"]) == {"wikitext:wikitext-2-v1:train": 1.0}
    assert parse_sources(["name:config:train:2"]) == {"name:config:train": 2.0}
    with pytest.raises(CalibrationError, match="given twice"):
        parse_sources(["a.jsonl", "a.jsonl:0.5"])
