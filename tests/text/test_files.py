"""What a user's text may lie in."""

import bz2
import codecs
import gzip
import json
import lzma
import tarfile

import datasets
import pytest
from datasets import Dataset, DatasetDict

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.evaluation.perplexity import text_windows
from funcnet_plugin.text.sources import load_sources, load_texts, parse_sources
from funcnet_plugin.text.windows import token_windows
from tests.conftest import make_tokenizer

ROWS = [{"id": 1, "text": "one\ntwo"}, {"id": 2, "text": "three, four"}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'id,text\n1,"one\ntwo"\n2,"three, four"\n'
TSV = 'id\ttext\n1\t"one\ntwo"\n2\tthree, four\n'
SEMICOLONS = 'id;text\n1;"one\ntwo"\n2;three, four\n'


def parquet(path):
    Dataset.from_list(ROWS).to_parquet(path)


def arrow(path):
    saved = path.with_name("saved")
    Dataset.from_list(ROWS).save_to_disk(saved)
    next(saved.glob("*.arrow")).rename(path)


def gzipped(content: bytes) -> bytes:
    """Without the time of day: test processes that start in different seconds collect alike."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("A.JSONL", LINES),
        ("a.json", LINES),
        ("a.dump", LINES),
        ("lines", LINES),
        ("blank.jsonl", "\n" + LINES.replace("\n", "\n\n")),
        ("array.json", json.dumps(ROWS)),
        ("array.jsonl", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2)),
        ("pretty.unknown", json.dumps(ROWS, indent=2)),
        ("field.json", json.dumps({"version": 1, "data": ROWS})),
        ("field.JSON", json.dumps({"about": {"a": 1}, "data": ROWS}, indent=2)),
        ("columns.json", json.dumps({"text": TEXTS})),
        ("strings.json", json.dumps(TEXTS)),
        ("a.csv", CSV),
        ("A.CSV", CSV),
        ("a.csv", SEMICOLONS),
        ("a.export", CSV),
        ("a.tsv", TSV),
        ("A.Tsv", TSV),
        ("a.tab", TSV),
        ("wrong.csv", LINES),
        ("mark.jsonl", codecs.BOM_UTF8 + LINES.encode()),
        ("mark.csv", codecs.BOM_UTF8 + CSV.encode()),
        ("mark.json", codecs.BOM_UTF8 + json.dumps(ROWS, indent=2).encode()),
        ("wide.jsonl", LINES.encode("utf-16")),
        ("wide.csv", CSV.encode("utf-16")),
        ("a.jsonl.gz", gzipped(LINES.encode())),
        ("A.CSV.GZ", gzipped(CSV.encode())),
        ("a.tsv.gz", gzipped(TSV.encode())),
        ("a.jsonl.xz", lzma.compress(LINES.encode())),
        ("a.jsonl.bz2", bz2.compress(LINES.encode())),
        ("packed", gzipped(LINES.encode())),
        ("a.parquet", parquet),
        ("A.PARQUET", parquet),
        ("part-0", parquet),
        ("a.arrow", arrow),
        ("wiki[1].jsonl", LINES),
        ("g?.csv", CSV),
        ("*.jsonl", LINES),
        ("[!a]{b,c}.parquet", parquet),
        ("a::b.jsonl", LINES),
        ("a:b.jsonl", LINES),
        (".hidden.jsonl", LINES),
        ("with blank.jsonl.gz", gzipped(LINES.encode())),
    ],
)
def test_records_are_read(tmp_path, name, content):
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "g1.csv").write_text("id,text\n1,another file\n")
    assert load_texts(str(path)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", CSV.encode()),
        ("A.TXT", b"{}, [1], a,text\n"),
        ("a.md", LINES.encode()),
        ("prose", b"[Sic.] Well, text and more.\n"),
        ("prose.log", b"One, two.\n"),
    ],
)
def test_text_stays_one_document(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert load_texts(tmp_path / name) == [content.decode()]


def test_compressed_and_marked_text_is_one_document(tmp_path):
    for name, content in (
        ("a.txt.gz", gzipped(b"one\ntwo")),
        ("a.txt", codecs.BOM_UTF8 + b"one\ntwo"),
        ("b.txt", "one\ntwo".encode("utf-16")),
    ):
        (tmp_path / name).write_bytes(content)
        assert load_texts(tmp_path / name) == ["one\ntwo"]


def test_the_column_is_the_one_asked_for(tmp_path):
    (tmp_path / "a.csv").write_text("text,page\nno,yes\n")
    (tmp_path / "b.NDJSON").write_text('{"text": "no", "page": {"body": "yes", "n": 1}}\n')
    (tmp_path / "c.json").write_text(json.dumps({"data": [{"body": "yes"}], "n": [{"a": 1}]}))
    assert load_texts(tmp_path / "a.csv", "page") == ["yes"]
    assert load_texts(tmp_path / "b.NDJSON", "page.body") == ["yes"]
    assert load_texts(tmp_path / "c.json", "data.body") == ["yes"]
    assert load_texts(tmp_path / "c.json", "body") == ["yes"]
    assert load_texts([{"page": "yes"}], "page") == ["yes"]
    assert load_texts(Dataset.from_list([{"page": "yes"}]), "page") == ["yes"]


def test_other_fields_may_have_several_types(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "id": 1}\n{"text": "two", "id": {"a": []}}\n'
    )
    assert load_texts(tmp_path / "a.jsonl") == ["one", "two"]


def test_directories_are_read(tmp_path):
    folder = tmp_path / "data[1]"
    (folder / "more").mkdir(parents=True)
    (folder / "README.md").write_text("about")
    (folder / ".cache.jsonl").write_text('{"text": "no"}\n')
    (folder / "a.jsonl").write_text(LINES)
    (folder / "more" / "b.jsonl").write_text('{"text": "last"}\n')
    assert load_texts(folder) == [*TEXTS, "last"]
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert load_texts(tmp_path / "saved") == TEXTS
    part = Dataset.from_list(ROWS)
    DatasetDict({"test": part.select([1]), "train": part}).save_to_disk(tmp_path / "splits")
    assert load_texts(tmp_path / "splits") == TEXTS
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder, "data")
    assert load_texts(tmp_path / "all.tar") == [*TEXTS, "last"]


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ raise_exception('no system') if m.role == 'system' }}"
    "{{ m.role }}: {{ m.content }}.\n{% endfor %}"
)


def talking():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("record", "column"),
    [
        ({"messages": CHAT}, "text"),
        ({"messages": CHAT, "tools": None}, "messages"),
        ({"conversations": SHARED}, "text"),
        ({"talk": SHARED}, "talk"),
        ({"row": {"messages": CHAT}}, "row.messages"),
        ({"messages": [CHAT[0] | {"content": [{"type": "text", "text": "hi"}]}, CHAT[1]]}, "text"),
    ],
)  # fmt: skip
def test_conversations_go_through_the_chat_template(tmp_path, record, column):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(record) + "\n")
    told = "<s>user: hi.\nassistant: ho.\n"
    assert load_texts(path, column, talking()) == [told]
    (([document], share),) = load_sources(str(path), column, talking())
    assert document.text == told and share == 1.0
    assert text_windows(path, column, talking(), 4, 2).shape == (2, 4)


def test_one_beginning_is_enough(tmp_path):
    """A tokenizer that begins every text itself does not need the template's."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = talking()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    texts = load_texts([{"messages": CHAT}], tokenizer=tokenizer)
    ids = token_windows(texts, tokenizer, window=10, samples=9, seed=0)
    assert sum(window.count(1) for window in ids) == 1


@pytest.mark.parametrize(
    ("name", "content", "tokenizer", "message"),
    [
        ("c.jsonl", json.dumps({"messages": CHAT}), make_tokenizer, "has no chat template"),
        ("c.jsonl", json.dumps({"messages": CHAT}), lambda: None, "only the model's tokenizer"),
        ("c.jsonl", '{"messages": [{"role": "system", "content": "x"}]}', talking,
         "does not take record 1 of .*c.jsonl: no system"),
        ("c.jsonl", '{"messages": [{"role": "user"}]}', talking, "does not hold text"),
        ("bad.jsonl", LINES + "{oops\n", talking, "bad.jsonl is not valid JSON lines: line 3"),
        ("bad.json", '[{"text": "a"},\n', talking, "bad.json is not valid JSON"),
        ("half.jsonl.gz", gzipped(LINES.encode() * 99)[:-20], talking, "no whole gzip file"),
        ("short.jsonl.gz", gzipped(LINES.encode())[:20], talking, "no whole gzip file"),
        ("a.txt", "no mark".encode("utf-16-le"), talking, "not UTF-8"),
        ("a.jsonl", "\n \n", talking, "holds no text"),
        ("a.parquet", "no parquet", talking, "not a parquet file"),
        ("a.csv", b"id,text\n1,\xff\xfe\xfa\n", talking, "not UTF-8"),
        ("a.jsonl", b'{"text": "\xff\xfa"}\n', talking, "not UTF-8"),
        ("a.csv", "", talking, "holds no text"),
        ("a.parquet", "", talking, "holds no text"),
        ("a.json", "[]", talking, "holds no text"),
        ("a.json", "3", talking, "neither records nor texts"),
        ("a.json", "[[1]]", talking, "holds list where a record or a text should be"),
        ("a.json", '{"a": [{"b": 1}], "c": [{"d": 1}]}', talking, "several lists of records: a, c"),
        ("a.jsonl", '{"d": {"page": "x"}}\n', talking, "no column 'text' but d.page"),
        ("a.jsonl", '{"text": {"en": "x"}}\n', talking, "has the fields text.en"),
        ("a.csv", "id,page\n1,x\n", talking, "no column 'text' but id, page"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, tokenizer, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CalibrationError, match=message) as error:
        load_texts(path, tokenizer=tokenizer())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "A.JSONL", "a.parquet", "b.jsonl.gz"])
def test_a_file_that_is_not_there_is_no_dataset(name):
    with pytest.raises(CalibrationError, match="does not exist"):
        load_texts(name)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("wikitext", ("wikitext", None, "train")),
        ("wikitext:v1", ("wikitext", "v1", "train")),
        ("wikitext:v1:test", ("wikitext", "v1", "test")),
        ("wikitext:v1:train[:100]", ("wikitext", "v1", "train[:100]")),
        ("wikitext:v1:train[10%:20%]", ("wikitext", "v1", "train[10%:20%]")),
        ("org/wiki:train[5:]", ("org/wiki", None, "train[5:]")),
        ("wikitext:v1:train[:9]+test[1:2]", ("wikitext", "v1", "train[:9]+test[1:2]")),
        ("wikitext::train+test", ("wikitext", None, "train+test")),
    ],
)
def test_slices_of_splits_are_asked_of_the_hub(monkeypatch, source, asked):
    def load_dataset(name, config=None, *, split):
        return Dataset.from_list([{"text": f"{(name, config, split)}"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_texts(source) == [str(asked)]
    assert parse_sources([source]) == {source: 1.0}
    assert parse_sources([f"{source}:0.5"]) == {source: 0.5}
    assert parse_sources([f"{source}:1e-1"]) == {source: 0.1}


def test_a_file_is_taken_before_a_share(tmp_path):
    path = tmp_path / "run:2"
    path.write_text("text")
    assert parse_sources([str(path), f"{path}x:2", "set:v1.0"]) == {
        str(path): 1.0, f"{path}x": 2.0, "set:v1.0": 1.0
    }  # fmt: skip
    assert parse_sources([f"{path}:0.25"]) == {str(path): 0.25}
