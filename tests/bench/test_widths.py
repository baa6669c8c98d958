"""Which widths are called fast, and what `align: auto` makes of it."""

import json

import pytest
import torch

from funcnet_plugin.bench import widths
from funcnet_plugin.bench.widths import bench_widths, cost, fastest_step, write_widths
from funcnet_plugin.cut.alignment import resolve
from funcnet_plugin.errors import FuncnetError, RecipeError
from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier
from funcnet_plugin.hosts.llmcompressor.neighbours import divisors
from funcnet_plugin.pruning import prune
from tests.conftest import make_llama, make_tokenizer

BASES = [512, 768, 1024]


def times(dear):
    """Seconds that lie on a line, but for the widths that are said to be dear."""
    every = {base - step for base in BASES for step in widths.STEPS[:-1]} | set(BASES)
    return {w: (1e-6 * w + 1e-4) * (1.25 if dear(w) else 1.0) for w in every}


def test_the_cost_of_a_step_is_relative_to_the_line_of_aligned_widths():
    seconds = times(lambda width: width % 8)
    assert cost(seconds, BASES, 1) == pytest.approx(1.25)
    assert all(cost(seconds, BASES, step) == pytest.approx(1.0) for step in widths.STEPS[1:])


def test_the_fast_step_is_the_smallest_below_which_it_gets_dear():
    seconds = times(lambda width: width % 32)
    steps = {step: {1: cost(seconds, BASES, step)} for step in widths.STEPS}
    assert fastest_step(steps) == 32
    steps[128] = {1: 1.0, 512: 1.03}  # dear for one number of tokens: finer steps hold it too
    assert fastest_step(steps) == 256
    assert fastest_step({step: {1: 1.0} for step in widths.STEPS}) == 1


def test_all_widths_are_timed_and_the_file_is_one_for_align(tmp_path, monkeypatch):
    monkeypatch.setattr(widths, "_AT_LEAST", 0.0)
    make_llama(intermediate_size=1024).save_pretrained(tmp_path / "model")
    found = bench_widths(tmp_path / "model", [1, 4], 1, "float32", 1)
    assert set(found["widths"]["1"]) == {str(b - s) for b in BASES for s in (0, *widths.STEPS[:-1])}
    assert all(seconds > 0 for of in found["widths"].values() for seconds in of.values())
    assert found["align"] in widths.STEPS and found["dtype"] == "float32"
    path = write_widths(found, tmp_path / "out")
    assert resolve(str(path), "cpu", ()) == json.loads(path.read_text())["align"]


def test_a_narrow_model_has_no_widths_to_compare(tmp_path):
    make_llama().save_pretrained(tmp_path)
    with pytest.raises(FuncnetError, match=r"width 48 .*take a model of width 1024"):
        bench_widths(tmp_path, [1], 1, "auto", 1)


def test_auto_knows_the_device_and_heeds_groups(tmp_path):
    assert resolve(40, "cpu", (128,)) == 40  # a number is what the user wants
    assert resolve("auto", "cpu", ()) == 32
    assert resolve("auto", "cuda", ()) == 128
    assert resolve("auto", "cpu", (128,)) == 128
    assert resolve("auto", "cpu", (96, 64)) == 192
    (tmp_path / "widths.json").write_text('{"align": 8}')
    assert resolve(str(tmp_path / "widths.json"), "cuda", (12,)) == 24


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"align": 0}', '{"align": "a"}'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "widths.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=r"widths\.json"):
        resolve(str(path), "cpu", ())


@pytest.mark.parametrize("given", [0, -8, True, 1.5, ""])
def test_what_is_no_alignment_is_refused(given):
    with pytest.raises(RecipeError, match=f"align={given!r}.*auto"):
        WidthPruningModifier(pruning_ratio=0.2, align=given)


def test_a_run_with_auto_plans_to_the_number():
    model = make_llama(intermediate_size=256, hidden_size=64)
    modifier = WidthPruningModifier(pruning_ratio=0.3, align="auto")
    run = modifier.plan(model, 8)
    assert modifier.align == modifier.request.align == (128 if torch.cuda.is_available() else 32)
    kept = run.plan.possible_widths(run.plan.prunable[0])
    assert all(width % modifier.align == 0 for width in kept)


def test_what_a_run_took_stands_in_the_checkpoint(tmp_path):
    make_llama(intermediate_size=256).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 40)
    (tmp_path / "widths.json").write_text('{"align": 24}')
    fields = {"scorer": "random", "repair": "none", "ratio_scope": "mlp", "pruning_ratio": 0.3}
    block = prune(
        tmp_path / "model", tmp_path / "text.txt", tmp_path / "out", recipe="prune_fast",
        overrides=fields | {"align": str(tmp_path / "widths.json")}, samples=4, window=16,
    )  # fmt: skip
    assert block["settings"]["align"] == 24
    assert block["kept_widths"] == [168] * 3  # of 256, 179 asked


def test_groups_of_a_quantization_behind_are_found():
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = make_llama(intermediate_size=256, hidden_size=64)
    scheme = {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group",
              "group_size": 64}}  # fmt: skip
    behind = [QuantizationModifier(config_groups={"group_0": scheme})]
    assert divisors(behind, model) == {64}
    assert divisors([], model) == set()
    modifier = WidthPruningModifier(pruning_ratio=0.3, align="auto")
    modifier.plan(model, 8, behind)
    assert modifier.align % 64 == 0
