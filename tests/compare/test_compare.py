"""`funcnet compare` on a tiny model, and what it is made of."""

import csv
import math
import time

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from funcnet_plugin.compare import compare, table, write_plots
from funcnet_plugin.compare import run as run_module
from funcnet_plugin.compare.fingerprint import fingerprint
from funcnet_plugin.errors import (
    BudgetError,
    CalibrationError,
    CheckpointError,
    FuncnetError,
    RecipeError,
)
from funcnet_plugin.evaluation.lm_eval_tasks import Tasks, _first_metric
from funcnet_plugin.evaluation.perplexity import perplexities, text_windows
from funcnet_plugin.evaluation.rows import KeptRows
from funcnet_plugin.evaluation.usage import Usage
from funcnet_plugin.measure import gradients
from funcnet_plugin.tasks import write_local_tasks
from tests.compare.plans import ALIGNED, NETWORKS, SMALL, plan
from tests.conftest import make_llama, make_tokenizer

pytestmark = pytest.mark.usefixtures("forget_the_session")


def test_perplexity_is_that_of_the_convention(checkpoint, files):
    windows = text_windows(files["near"], "text", make_tokenizer(), length=40, count=5)
    assert windows.shape == (5, 40)
    found = perplexities(checkpoint, {"near": windows})
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        losses = [float(model(w[None], labels=w[None]).loss) for w in windows]
    assert found.by_text["near"] == pytest.approx(math.exp(sum(losses) / 5), rel=1e-4)
    with pytest.raises(CalibrationError, match="one window needs 99999"):
        text_windows(files["near"], "text", make_tokenizer(), length=99999, count=5)


def test_rows_hold_what_was_measured_and_an_old_one_goes_on(
    checkpoint, files, tmp_path, monkeypatch
):
    rows = compare(plan(checkpoint, files), tmp_path / "out")
    assert [row["method"] for row in rows] == [
        "dense", "default", "default", "flap", "flap", "random", "random",
    ]  # fmt: skip
    dense = rows[0]["perplexity"]
    for row in rows[1:]:
        ratios = [row["perplexity"][name] / dense[name] for name in dense]
        assert row["gm"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
        assert row["worst"] == max(ratios)
        assert 0 < row["ratio_reached"] < 0.3 and row["parameters"] < rows[0]["parameters"]
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "out" / "rows.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    pruned = []
    prune = run_module.prune
    monkeypatch.setattr(
        run_module, "prune", lambda *a, **k: pruned.append(k["overrides"]) or prune(*a, **k)
    )
    again = compare(plan(checkpoint, files), tmp_path / "out")
    assert len(pruned) == 1 and pruned[0]["pruning_ratio"] == 0.2  # only what was cut short
    for key in ("method", "perplexity", "gm"):
        assert [row[key] for row in again] == [row[key] for row in rows]
    compare(plan(checkpoint, files, samples=(24,)), tmp_path / "out")
    assert len(pruned) == 7  # other data: nothing of it was known
    trained_on = make_llama()
    with torch.no_grad():
        trained_on.lm_head.weight.mul_(2.0)
    trained_on.save_pretrained(checkpoint)
    anew = compare(
        plan(checkpoint, files, methods=("random",), overrides=ALIGNED), tmp_path / "out"
    )
    assert len(pruned) == 9  # other weights in the same place
    assert anew[0]["perplexity"] != rows[0]["perplexity"]
    assert all(row["peak_mb"] >= 0 and row["seconds"] > 0 for row in rows[1::2])


def test_tables_give_mean_and_spread_of_the_seeds(checkpoint, files, tmp_path):
    changes = {"methods": ("random",), "overrides": ALIGNED, "ratios": (0.2,)}
    seeds = plan(checkpoint, files, seeds=(0, 1), **changes)
    rows = compare(seeds, tmp_path / "out")
    text = table.markdown(rows, seeds)
    assert "| random | 0.2 |" in text and "±" in text and text.count("\n") == 4
    (first, second) = [row for row in csv.DictReader(table.as_csv(rows, seeds).splitlines())][1:]
    assert first["seed"] == "0" and second["seed"] == "1"
    assert float(first["near"]) == rows[1]["perplexity"]["near"]
    key = {name: rows[2][name] for name in ("method", "ratio", "seed", "repair")}
    one_refused = table.markdown([*rows[:2], key | {"refused": "too narrow"}], seeds)
    assert "too narrow" in one_refused and "±" not in one_refused


def test_a_method_that_does_not_fit_is_a_row_and_not_the_end(checkpoint, files, tmp_path):
    recipe = {"p_stage": {"p_modifiers": {"WidthPruningModifier": {"repair": "bias"}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    chosen = ("best", f"mine={tmp_path / 'mine.yaml'}", "random")
    changes = {"methods": chosen, "repairs": ("",), "ratios": (0.9,), "overrides": ALIGNED}
    refused = plan(checkpoint, files, **changes)
    rows = compare(refused, tmp_path / "out")
    assert all("refused" in row for row in rows[1:])
    assert "0.9" in table.markdown(rows, refused)
    assert write_plots(rows, refused, tmp_path) == []


def test_ratios_share_what_is_measured_before_the_cut(checkpoint, files, tmp_path, monkeypatch):
    """One backward pass and one ICA serve all ratios, with the rows that each would have alone."""
    networks = {"name": "networks", "strategy": "global"}
    mine = {"scorer": [networks, "surgeon"], "allocation": "threshold"}
    recipe = {"p_stage": {"p_modifiers": {"FunctionalNetworkModifier": mine}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    changes = {"methods": (f"networks={tmp_path / 'mine.yaml'}", "fast"), "repairs": ("",)}
    passes = []
    taken = gradients._backward_passes
    monkeypatch.setattr(
        gradients, "_backward_passes", lambda *a, **k: passes.append(a) or taken(*a, **k)
    )
    shared = compare(plan(checkpoint, files, **changes), tmp_path / "once")
    assert len(passes) == 1
    alone = compare(plan(checkpoint, files, **changes, measure_once=False), tmp_path / "each")
    assert len(passes) == 3
    for key in ("method", "ratio", "recipe", "perplexity", "ratio_reached"):
        assert [row.get(key) for row in shared] == [row.get(key) for row in alone]
    assert ["seconds" in row for row in shared] == [False, True, False, True, True]
    assert all("seconds" in row for row in alone[1:])
    assert not [path for path in (tmp_path / "once").iterdir() if path.is_dir()]
    assert "| - |" in table.markdown(shared, plan(checkpoint, files, **changes))


def test_axes_with_several_values_become_lines_and_plots(checkpoint, files, tmp_path):
    axes = plan(
        checkpoint, files, methods=("default", "shortgpt"), ratios=(0.1, 0.3), samples=(16, 24),
        sweeps={f"{NETWORKS}n_components": [4, 6]}, repairs=("none", "least_squares"),
        overrides={k: v for k, v in SMALL.items() if k != f"{NETWORKS}n_components"},
    )  # fmt: skip
    rows = compare(axes, tmp_path / "out")
    found = {
        (r["method"], r["ratio"], r["samples"], r["repair"], str(r["setting"])) for r in rows[1:]
    }
    # shortgpt has neither the field nor a repair: nothing is done twice
    assert len(found) == len(rows) - 1 == 2 * 2 * 2 * 2 + 2 * 2
    text = table.markdown(rows, axes)
    assert f"samples=24, {NETWORKS}n_components=6" in text and "| shortgpt | 0.1 |" in text
    (first, *_) = csv.DictReader(table.as_csv(rows[1:], axes).splitlines())
    assert first[f"{NETWORKS}n_components"] == "4" and first["samples"] == "16"
    written = write_plots(rows, axes, tmp_path)
    assert [path.name for path in written] == [
        "ratio.png", "samples.png", "scorer-networks-n_components.png",
    ]  # fmt: skip
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)


def test_lm_eval_tasks_are_scored(checkpoint, files, tmp_path):
    tasks = tmp_path / "tasks"
    (name,) = write_local_tasks(tasks, {"near": files["near"]}, [], "text")
    changes = {"tasks": (name,), "include_path": str(tasks), "limit": 2, "overrides": ALIGNED}
    scored = plan(checkpoint, files, methods=("random",), ratios=(0.2,), **changes)
    rows = compare(scored, tmp_path / "out")
    assert all(row["tasks"][name] > 1 for row in rows)  # a perplexity
    assert f"{rows[1]['tasks'][name]:,.4f}" in table.markdown(rows, scored)
    with pytest.raises(FuncnetError, match="lm-eval knows no task 'no_such'"):
        compare(plan(checkpoint, files, **changes | {"tasks": ("no_such",)}), tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_tags_and_groups_without_a_score_are_scored_by_their_members(checkpoint, files, tmp_path):
    tasks = tmp_path / "tasks"
    sources = {name: files[name] for name in ("near", "far")}
    near, far = write_local_tasks(tasks, sources, [], "text")
    tagged = yaml.safe_load((tasks / f"{far}.yaml").read_text()) | {"tag": ["everything"]}
    (tasks / f"{far}.yaml").write_text(yaml.safe_dump(tagged))
    group = {"group": "plain", "task": [near, {"task": ["everything"]}]}
    (tasks / "plain.yaml").write_text(yaml.safe_dump(group))
    options = {"methods": (), "include_path": str(tasks), "limit": 1}
    for name, members in (("everything", [far]), ("plain", [near, far])):
        scored = plan(checkpoint, files, tasks=(name,), **options)
        (dense,) = compare(scored, tmp_path / name)
        assert list(dense["tasks"]) == members
        assert all(task in table.markdown([dense], scored) for task in members)


def test_a_group_with_settings_of_its_own_is_not_scored_without_them(checkpoint, files, tmp_path):
    (name,) = write_local_tasks(tmp_path, {"near": files["near"]}, [], "text")
    group = {"group": "shots", "task": [{"task": name, "num_fewshot": 5}]}
    (tmp_path / "shots.yaml").write_text(yaml.safe_dump(group))
    asked = plan(checkpoint, files, tasks=("shots",), include_path=str(tmp_path))
    with pytest.raises(FuncnetError, match="a group of these tasks changes what"):
        Tasks(asked.tasks, asked.include_path)


def test_a_filtered_metric_is_a_score():
    result = {"alias": "gsm8k", "sample_len": 9, "exact_match_stderr,strict-match": 0.1,
              "exact_match,strict-match": 0.4, "exact_match,flexible-extract": 0.5}  # fmt: skip
    assert _first_metric(result) == 0.4


def test_other_tasks_of_the_same_name_are_measured_anew(checkpoint, files, tmp_path):
    tasks = tmp_path / "tasks"
    (name,) = write_local_tasks(tasks, {"near": files["near"]}, [], "text")
    scored = plan(checkpoint, files, texts={}, tasks=(name,), include_path=str(tasks))
    first = fingerprint(scored, 40)
    assert fingerprint(scored, 40) == first
    (tasks / "__pycache__").mkdir()
    (tasks / "__pycache__" / "utils.pyc").write_text("lm-eval's")
    assert fingerprint(scored, 40) == first
    files["near"].write_text('{"text": "another document"}\n')  # the task's data
    second = fingerprint(scored, 40)
    with_code = (tasks / f"{name}.yaml").read_text() + "doc_to_choice: !function utils.choices\n"
    (tasks / f"{name}.yaml").write_text(with_code)
    (tasks / "words.yaml").write_text("dataset_kwargs: {data_files: null}")
    coded = fingerprint(scored, 40)
    files["near"].write_text('{"text": "one more document"}\n')
    assert fingerprint(scored, 40) != coded
    (tasks / f"{name}.yaml").write_text("{}")
    assert len({first, second, fingerprint(scored, 40)}) == 3


def test_what_was_refused_is_tried_again(checkpoint, files, tmp_path, monkeypatch):
    asked = plan(checkpoint, files, methods=("random",), ratios=(0.2,), overrides=ALIGNED)
    prune = run_module.prune

    def refuse(*args, **kwargs):
        raise RecipeError("there is no scorer yet")

    monkeypatch.setattr(run_module, "prune", refuse)
    for _ in range(2):
        assert "refused" in compare(asked, tmp_path / "out")[1]
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 2  # said once
    monkeypatch.setattr(run_module, "prune", prune)
    for _ in range(2):
        assert "gm" in compare(asked, tmp_path / "out")[1]
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("values", [(0.02, "auto"), (["act"], ["act", "up"]), (True, False)])
def test_values_that_are_no_numbers_stand_by_name(checkpoint, files, tmp_path, values):
    asked = plan(checkpoint, files, sweeps={"field": values})
    common = {"method": "a", "ratio": 0.1, "samples": 16, "repair": "none"}
    rows = [common | {"setting": {"field": v}, "gm": 1.1, "worst": 1.2} for v in values]
    (path,) = write_plots(rows, asked, tmp_path)
    assert path.name == "field.png"


def test_whole_models_are_peers(checkpoint, files, tmp_path):
    peers = plan(
        checkpoint, files, methods=("shortgpt", "shortened_llama", "slicegpt"), ratios=(0.3,),
        overrides={"multiple_of": 2},
    )  # fmt: skip
    rows = compare(peers, tmp_path / "out")
    for row in rows[1:]:
        assert row["ratio_reached"] == pytest.approx(0.3, abs=0.05), row["method"]
        assert row["repair"] == "none" and row["gm"] > 0


def test_measuring_on_the_calibration_text_is_said(checkpoint, files, tmp_path):
    same = plan(checkpoint, files, texts={"seen": str(files["calibration"])}, methods=())
    with pytest.warns(UserWarning, match="seen is measured on the text that calibrates"):
        compare(same, tmp_path / "out")


def test_bad_requests_come_before_the_work(checkpoint, files, tmp_path):
    with pytest.raises(RecipeError, match="no method 'magic'; choose one of default, best"):
        compare(plan(checkpoint, files, methods=("magic",)), tmp_path / "out")
    with pytest.raises(BudgetError, match=r"between 0 and 1, got 1\.2"):
        compare(plan(checkpoint, files, ratios=(0.1, 1.2)), tmp_path / "out3")
    with pytest.raises(RecipeError, match="no repair 'foo'; choose one of none"):
        compare(plan(checkpoint, files, repairs=("foo",)), tmp_path / "out4")
    with pytest.raises(CheckpointError, match="is a file"):
        compare(plan(checkpoint, files), files["near"])
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(RecipeError, match="unknown field 'alignment'"):
        compare(plan(checkpoint, files, overrides={"alignment": 8}), tmp_path / "out2")


def test_two_recipes_of_one_name_are_refused(checkpoint, files, tmp_path):
    """Their rows would be the seeds of one line of the table."""
    for name, scorer in (("a", "effect"), ("b", "random")):
        modifier = f"WidthPruningModifier: {{pruning_ratio: 0.2, scorer: {scorer}, align: 4}}"
        (tmp_path / f"{name}.yaml").write_text(f"a_stage:\n  pruning_modifiers:\n    {modifier}\n")
    methods = [f"mine={tmp_path}/{name}.yaml" for name in "ab"]
    asked = plan(checkpoint, files, methods=methods)
    with pytest.raises(RecipeError, match="two methods with other recipes are called mine"):
        compare(asked, tmp_path / "out")


def test_a_line_cut_short_takes_no_other_with_it(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"mark": "a", "row": {}}\n{"mark": "b", "r')
    KeptRows(rows).add("c", {"gm": 1.0})
    kept = KeptRows(rows)
    assert kept.find("a") == {} and kept.find("b") is None and kept.find("c") == {"gm": 1.0}


def test_peak_memory_is_that_of_the_run_alone():
    """Twice the same: what the first freed must not hide what the second needs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for _ in range(2):
        with Usage() as usage:  # 100 MB in small pieces
            block = [torch.ones(1000, device=device) for _ in range(25_000)]
            time.sleep(0.05)
        assert 80 < usage.peak_mb < 200 and usage.seconds >= 0.05
        del block
