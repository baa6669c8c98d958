import json
from dataclasses import replace

import pytest
from lm_eval.tasks import TaskManager
from rich.console import Console

from funcnet_plugin.demo.evaluate import Evaluation, write_tasks
from funcnet_plugin.demo.report import (
    headline,
    result_rows,
    terminal_table,
    write_json,
    write_page,
    write_plots,
)
from funcnet_plugin.demo.run import check_place, make_room, run_demo
from funcnet_plugin.demo.skills import SKILLS, examples
from funcnet_plugin.errors import BudgetError, CheckpointError

DENSE = Evaluation(
    accuracy=dict.fromkeys(SKILLS, 0.96),
    stderr=dict.fromkeys(SKILLS, 0.02),
    questions=dict.fromkeys(SKILLS, 100),
    byte_perplexity=1.5,
    parameters=1000,
    bytes_on_disk=2_000_000,
)
PRUNED = replace(DENSE, accuracy=DENSE.accuracy | {"add": 0.5}, byte_perplexity=1.8, parameters=750)
BLOCK = {
    "pruning_ratio_requested": 0.2,
    "pruning_ratio_reached": 0.25,
    "original_widths": [64, 64],
    "kept_widths": [48, 48],
    "settings": {"score": "<b>union</b>"},
}
SPEEDS = [1000.0, 1250.0]


def test_the_rows_compare_dense_and_pruned():
    rows = {name: values for name, *values in result_rows(DENSE, PRUNED, SPEEDS)}
    assert rows["parameters"] == ["1,000", "750", "-25.0%"]
    assert rows["perplexity"] == ["1.500", "1.800", "+20.0%"]
    assert rows["tokens per second"] == ["1,000", "1,250", "+25.0%"]
    assert rows["Addition (%)"] == ["96.0", "50.0", "-46.0"]
    assert rows["Facts (%)"] == ["96.0", "96.0", "+0.0"]
    assert rows["mean of skills (%)"][2] == "-5.8"


def test_the_page_stands_alone_and_escapes(tmp_path):
    plots = write_plots(tmp_path, DENSE, PRUNED, BLOCK)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)
    page = write_page(tmp_path, result_rows(DENSE, PRUNED, SPEEDS), BLOCK, plots).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "<b>union" not in page and "&lt;b&gt;union" in page
    assert headline(BLOCK).replace(">", "&gt;") in page
    for about in SKILLS.values():
        assert about.title in page


def test_the_table_and_the_json_hold_the_same_figures(tmp_path):
    console = Console(record=True, width=100)
    console.print(terminal_table(result_rows(DENSE, PRUNED, SPEEDS)))
    assert "-46.0" in console.export_text()
    results = write_json(tmp_path, DENSE, PRUNED, SPEEDS, BLOCK)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["pruned"]["accuracy"]["add"] == 0.5


def test_the_tasks_are_read_by_lm_eval(tmp_path):
    names = write_tasks(tmp_path, limit=7)
    assert names == [f"funcnet_demo_{skill}" for skill in SKILLS] + ["funcnet_demo_text"]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert set(manager.all_tasks) >= set(names)
    rows = [json.loads(line) for line in (tmp_path / "agreement.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    for row, example in zip(rows, examples("agreement", 7, seed=0), strict=True):
        assert row["choices"][row["label"]] == example.answer + "\n"


def test_an_earlier_demo_is_replaced_and_nothing_else(tmp_path):
    out = tmp_path / "demo"
    check_place(out)
    make_room(out)
    (out / "pruned").mkdir(parents=True)
    (out / "results.json").write_text("{}")
    check_place(out)
    make_room(out)
    assert [path.name for path in out.iterdir()] == [".funcnet-demo"]
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match=r"not marked as a demo's and holds thesis\.tex"):
        check_place(out)
    mine = tmp_path / "mine"
    (mine / "pruned").mkdir(parents=True)  # a name that anybody may choose
    with pytest.raises(CheckpointError, match="not marked as a demo's and holds pruned"):
        run_demo(mine, console=Console())
    with pytest.raises(CheckpointError, match="is a file, so"):
        check_place(out / "thesis.tex" / "demo")


def test_a_mistake_costs_no_earlier_demo(tmp_path):
    make_room(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(BudgetError):
        run_demo(tmp_path, console=Console(quiet=True), ratio=1.5)
    assert (tmp_path / "results.json").exists()
