"""lm-eval tasks from local files, whatever their names and columns are called."""

import csv
import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.tasks import write_local_tasks


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(folder, name):
    """What lm-eval scores of a task, document by document."""
    output = simple_evaluate(
        model="dummy",
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    return [sample["arguments"][0] for sample in output["samples"][name]]


@pytest.mark.parametrize(
    "column", ["text", "my text", "a-b", "not", "meta.text", "größe", "{{text}}", "'a\"b'"]
)
def test_any_column_can_be_the_text(tmp_path, column):
    texts = ["one {{ two }}", "[3]"]
    path = write(tmp_path / "a.jsonl", *({column: text, "text ": "no"} for text in texts))
    (name,) = write_local_tasks(tmp_path / "out", {"t-1": path}, [], column)
    assert [arguments[0] for arguments in documents(tmp_path / "out", name)] == texts


@pytest.mark.parametrize("name", ["a[1].jsonl", "b?.jsonl", "A.JSONL", "a.csv", "a::b.jsonl"])
def test_any_file_can_hold_the_text(tmp_path, name):
    rows = [{"a-b": "one", "n": 1}, {"a-b": "two", "n": 2}]
    if name.endswith("csv"):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["a-b", "n"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        write(tmp_path / name, *rows)
    write(tmp_path / "a1.jsonl", {"a-b": "another file"})
    write(tmp_path / "b1.jsonl", {"a-b": "another file"})
    (task,) = write_local_tasks(tmp_path / "out", {"t": tmp_path / name}, [], "a-b")
    assert [arguments[0] for arguments in documents(tmp_path / "out", task)] == ["one", "two"]


@pytest.mark.parametrize("file", ["a b.jsonl", "a-b[1].jsonl", "a,b.v2.jsonl", "ab.csv"])
def test_any_file_can_hold_pairs(tmp_path, file):
    pair = {"sentence_good": "It's good.", "sentence_bad": 'A "bad" one.'}
    if file.endswith("csv"):
        (tmp_path / file).write_text('sentence_good,sentence_bad\nIt\'s good.,"A ""bad"" one."\n')
    else:
        write(tmp_path / file, pair)
    (name,) = write_local_tasks(tmp_path / "out", {}, [tmp_path / file], "text")
    (asked,) = documents(tmp_path / "out", name)
    assert asked == ("", pair["sentence_good"])
    assert not set(name) & set(" ,[]/")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a b", "such as a_b"),
        ("../up", "such as up"),
        ("a/b", "such as a_b"),
        ("a,b", "cannot be the name"),
        ("a*", "cannot be the name"),
        ("-x", "cannot be the name"),
        ("wikitext", "has a task 'wikitext' of its own"),
        ("mmlu", "of its own"),
    ],
)
def test_names_that_lm_eval_would_not_understand(tmp_path, name, message):
    path = write(tmp_path / "a.jsonl", {"text": "one"})
    with pytest.raises(FuncnetError, match=message) as error:
        write_local_tasks(tmp_path / "out", {name: path}, [], "text")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pairs_of_one_name_are_refused(tmp_path):
    pair = {"sentence_good": "a", "sentence_bad": "b"}
    paths = [write(tmp_path / name, pair) for name in ("a b.jsonl", "a_b.jsonl")]
    with pytest.raises(FuncnetError, match="have one name"):
        write_local_tasks(tmp_path / "out", {}, paths, "text")


@pytest.mark.parametrize("column", ["page.text", "page.my text"])
def test_a_field_within_a_field_is_copied(tmp_path, column):
    path = write(tmp_path / "a.jsonl", *({"page": {column[5:]: t, "n": 1}} for t in ("one", "two")))
    (task,) = write_local_tasks(tmp_path / "out", {"t": path}, [], column)
    assert [arguments[0] for arguments in documents(tmp_path / "out", task)] == ["one", "two"]


def test_rows_without_text_are_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": None}, {"n": 1}, {"text": "two"})
    (task,) = write_local_tasks(tmp_path / "out", {"t": path}, [], "text")
    assert [arguments[0] for arguments in documents(tmp_path / "out", task)] == ["one", "two"]


def test_a_file_without_a_line_is_refused(tmp_path):
    with pytest.raises(FuncnetError, match="holds no text"):
        write_local_tasks(tmp_path / "out", {"t": write(tmp_path / "a.jsonl")}, [], "text")


def test_a_column_that_holds_no_text_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", {"n": 1, "messages": [{"role": "user", "content": "x"}]})
    for column, message in [("n", "does not hold text"), ("messages", "is a conversation")]:
        with pytest.raises(FuncnetError, match=message):
            write_local_tasks(tmp_path / "out", {"t": path}, [], column)
    assert not (tmp_path / "out").exists()


def test_copies_go_nowhere_where_lm_eval_cannot_find_them(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(FuncnetError, match="as a pattern"):
        write_local_tasks(tmp_path / "out[1]", {"t": tmp_path / "a.txt"}, [], "text")
    assert not (tmp_path / "out[1]").exists()
