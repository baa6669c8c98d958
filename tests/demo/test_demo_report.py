import html
import json
from dataclasses import replace

import pytest
from lm_eval.tasks import TaskManager
from rich.console import Console

from funcnet_plugin.demo.evaluate import Evaluation, write_tasks
from funcnet_plugin.demo.networks import Anatomy, Carrier, Kept
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
from funcnet_plugin.demo.story import carrier_rows, draw_networks, sentence, summary
from funcnet_plugin.errors import BudgetError, CheckpointError
from funcnet_plugin.lesions.effects import Effect

DENSE = Evaluation(
    accuracy=dict.fromkeys(SKILLS, 0.96),
    stderr=dict.fromkeys(SKILLS, 0.02),
    questions=dict.fromkeys(SKILLS, 100),
    byte_perplexity=1.5,
    parameters=1000,
    bytes_on_disk=2_000_000,
)
PRUNED = replace(DENSE, accuracy=DENSE.accuracy | {"add": 0.5}, byte_perplexity=1.8, parameters=750)
RANDOM = replace(PRUNED, accuracy=DENSE.accuracy | {"add": 0.25}, byte_perplexity=2.7)
MODELS = {"dense": DENSE, "pruned": PRUNED, "random": RANDOM}


def carrier(skill: str, change: float, worst: float, control: float = 0.0) -> Carrier:
    """One whose lesion changes its skill, the first other skill by `worst`, and no third one."""
    others = {s: Effect(0.96, 0.0, control, -0.1, 0.1) for s in SKILLS}
    other = next(s for s in SKILLS if s != skill)
    others[other] = Effect(0.96 + worst, worst, control, -0.1, 0.1)
    others[skill] = Effect(0.96 + change, change, control, -0.1, 0.1)
    return Carrier(skill, ("L0.N3", "L2.N1"), 30, 0.02, others)


ANATOMY = Anatomy(
    networks=72,
    neurons=1536,
    dense=dict.fromkeys(SKILLS, 0.96),
    carriers=(carrier("sort", -0.5, -0.02), carrier("facts", -0.5, -0.2)),
    kept=Kept(12, 300, 300 / 1536, Effect(0.92, -0.04, -0.6, -0.7, -0.5)),
)
BLOCK = {
    "pruning_ratio_requested": 0.2,
    "pruning_ratio_reached": 0.25,
    "original_widths": [64, 64],
    "kept_widths": [48, 48],
    "settings": {"score": "<b>union</b>"},
}
SPEEDS = [1000.0, 1250.0]


def test_the_rows_compare_dense_pruned_and_random():
    rows = {name: values for name, *values in result_rows(DENSE, PRUNED, RANDOM, SPEEDS)}
    assert rows["parameters"] == ["1,000", "750", "-25.0%", "750"]
    assert rows["perplexity"] == ["1.500", "1.800", "+20.0%", "2.700"]
    assert rows["tokens per second"] == ["1,000", "1,250", "+25.0%", ""]
    assert rows["Addition (%)"] == ["96.0", "50.0", "-46.0", "25.0"]
    assert rows["Facts (%)"] == ["96.0", "96.0", "+0.0", "96.0"]
    assert rows["mean of skills (%)"][2] == "-5.8"


def test_the_page_stands_alone_and_escapes(tmp_path):
    plots = write_plots(tmp_path, *MODELS.values(), BLOCK)
    plots.append(draw_networks(tmp_path / "networks.png", ANATOMY))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)
    rows = result_rows(*MODELS.values(), SPEEDS)
    page = write_page(tmp_path, rows, BLOCK, plots, ANATOMY, "atlas.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'href="atlas.html"' in page
    assert html.escape(sentence(ANATOMY.carriers[0])) in page
    assert sentence(ANATOMY.carriers[1]) not in page  # its networks hurt another skill too
    assert "http" not in page
    assert "<b>union" not in page and "&lt;b&gt;union" in page
    assert headline(BLOCK).replace(">", "&gt;") in page
    for about in SKILLS.values():
        assert about.title in page


def test_a_model_without_such_networks_has_a_page_too(tmp_path):
    nothing = replace(ANATOMY, carriers=(), kept=None)
    assert draw_networks(tmp_path / "networks.png", nothing).read_bytes().startswith(b"\x89PNG")
    assert summary(nothing)[0] == "0 of 8 skills have networks of their own."
    assert all(row[1] == "none hurts it most" for row in carrier_rows(nothing))


def test_the_table_and_the_json_hold_the_same_figures(tmp_path):
    console = Console(record=True, width=100)
    console.print(terminal_table(result_rows(*MODELS.values(), SPEEDS)))
    assert "-46.0" in console.export_text()
    results = write_json(tmp_path, MODELS, SPEEDS, BLOCK, ANATOMY)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["pruned"]["accuracy"]["add"] == 0.5
    assert results["networks"]["carried"] == ["sort"]
    assert results["networks"]["carriers"][1]["effects"]["facts"]["change"] == -0.5


def test_networks_carry_a_skill_that_they_take_and_leave_the_others():
    assert carrier("sort", -0.36, -0.05).carries  # 0.96 to 0.25 are 0.71, half of it 0.355
    assert not carrier("sort", -0.35, 0.0).carries
    assert carrier("sort", -0.35, 0.0).hurts_it_alone
    for other in (
        carrier("sort", -0.6, -0.06), carrier("sort", -0.6, 0.0, control=-0.05),
        carrier("sort", -0.09, 0.0),
    ):  # fmt: skip
        assert not other.carries and not other.hurts_it_alone
    assert carrier("sort", -0.71, 0.0).taken == pytest.approx(1.0)


def test_the_story_says_what_was_measured():
    assert sentence(ANATOMY.carriers[0]) == (
        "Sorting: without L0.N3 and L2.N1 (30 neurons, 2.0%) the model has 46% right instead of "
        "96%, chance is 25%; no other skill loses more than 2 points (Addition), and as many "
        "random neurons take 0.0 from it."
    )
    carried, kept = summary(ANATOMY)
    assert carried == "1 of 8 skills has networks of its own: Sorting."
    assert "12 networks of most variance, 300 of 1536 neurons (20%), keep 92.0%" in kept
    assert kept.endswith("instead of 96.0%; as many random neurons keep 36.0%.")
    assert "do not keep 95%" in summary(replace(ANATOMY, kept=None))[1]
    rows = {row[0]: row[1:] for row in carrier_rows(ANATOMY)}
    assert rows["Sorting *"][:2] == ("L0.N3 + L2.N1", "30 (2.0%)")
    assert rows["Sorting *"][2:] == ("96.0%", "46.0%", "96.0%", "-2.0, Addition")
    assert rows["Facts"][-1] == "-20.0, Addition"
    assert rows["Brackets"][0] == "none hurts it most"


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
