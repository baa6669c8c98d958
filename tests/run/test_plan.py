"""A run says before it starts what it will take, and at its end what it took."""

import re

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RoomError
from funcnet_plugin.measure import free_memory
from funcnet_plugin.measure.free_memory import FreeMemory
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.pruning import prune
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.run import Request, Run, announce, stages
from funcnet_plugin.run.clock import Clock, Spent
from funcnet_plugin.run.forecast import plan_table, spent_table
from funcnet_plugin.run.pace import estimate, layer_seconds
from funcnet_plugin.run.stages import Stage, Term
from funcnet_plugin.score.parts import SCORERS
from tests.conftest import make_llama
from tests.hosting import logged, recipe, run

GB = 2**30


def test_the_plan_has_a_line_for_each_stage():
    found = [
        Stage(stages.CALIBRATION, (Term("weights", host=3 * GB), Term("moments", gpu=20 * GB))),
        Stage(stages.SAVING, (Term("weights", host=3 * GB),)),
    ]
    lines = plan_table(found, {stages.CALIBRATION: 300.0}, gpu=True).splitlines()
    assert lines[0].split() == ["stage", "memory", "GPU", "time", "mostly"]
    assert re.split(r"  +", lines[1]) == ["calibration", "3.00", "20", "about 5 min", "moments"]
    assert lines[2].split() == ["saving", "3.00", "0.00", "weights"]
    assert re.split(r"  +", lines[3]) == ["in all", "3.00", "20", "about 5 min"]
    assert "GPU" not in plan_table(found, {}, gpu=False).splitlines()[0]


def test_what_was_spent_is_listed_without_stages_that_were_passed_over():
    spent = {stages.OWN_TEXT: Spent(), stages.REPAIR: Spent(7200.0, host=2 * GB)}
    lines = spent_table(spent).splitlines()
    assert len(lines) == 2 and re.split(r"  +", lines[1]) == ["cut and repair", "2.0 h", "2.00"]


def test_a_stage_within_another_is_counted_by_itself(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock()
    with clock.stage(stages.CALIBRATION), clock.stage(stages.SCORING):
        pass
    assert {name: s.seconds for name, s in clock.spent.items()} == {
        stages.CALIBRATION: 1.0 + 4.0,
        stages.SCORING: 2.0,
    }
    assert all(s.host > GB // 16 for s in clock.spent.values())


def test_timing_a_layer_leaves_the_model_as_it_was():
    model = make_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    units, state = bind(model).blocks, torch.get_rng_state()
    assert layer_seconds(model, units, torch.full((2, 9), 5)) > 0.0
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_estimate_grows_with_the_text_and_the_recipe():
    def seconds(samples, repair):
        model = make_llama()
        request = Request(
            pruning_ratio=0.2, scorers=(SCORERS.make("effect"),), repair=REPAIRS.make(repair),
            align=4,
        )  # fmt: skip
        plan = Run(request, model).plan
        work, free = Workload(samples, 100), FreeMemory(host=GB)
        return estimate(request, plan, model, work, free, per_token=1e-3, pace=1e9)

    plain, more = seconds(10, "least_squares"), seconds(20, "least_squares")
    assert list(plain) == [stages.CALIBRATION, stages.SCORING, stages.REPAIR]
    assert plain[stages.CALIBRATION] == pytest.approx(more[stages.CALIBRATION] / 2)
    assert plain[stages.CALIBRATION] >= 2 * 3 * 1000 * 1e-3  # each layer is called twice
    tuned = seconds(10, "distillation")
    assert tuned[stages.PREDICTIONS] == pytest.approx(3 * 1000 * 1e-3)
    assert tuned[stages.DISTILLATION] == pytest.approx(3 * tuned[stages.PREDICTIONS])


def test_oneshot_tells_the_plan_and_sums_up(fresh, texts, tmp_path, forget_the_session):
    out = tmp_path / "pruned"
    with logged() as lines:
        run(fresh(), texts, recipe(), output_dir=str(out))
    said = "".join(lines)
    plan = said.index("the plan for 20 samples of 40 tokens:\nstage ")
    assert plan < said.index("layer 0: kept")
    assert "\ncalibration " in said[plan:] and "\nin all " in said[plan:]
    end = said.index("removed (asked: 0.2), widths ")
    assert said.index("layer 2: kept") < end
    assert f"the model is in {out}; what next:" in said[end:]


def test_prune_names_the_directory_that_was_asked_for(checkpoint, texts, tmp_path):
    out = tmp_path / "pruned"
    with logged() as lines:
        prune(checkpoint, texts, out, recipe=recipe(), samples=16, window=40)
    said = "".join(lines)
    assert f"the model is in {out}; what next:\n  lm_eval --model funcnet" in said
    assert f"pretrained={out} " in said and f".{out.name}-" not in said[said.index("what next") :]


def test_what_cannot_fit_is_refused_before_the_weights_are_read(
    checkpoint, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(free_memory, "free_memory", lambda: FreeMemory(host=1000))
    (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(RoomError, match=r"the stage '.*' needs about"):
        prune(checkpoint, texts, tmp_path / "pruned", recipe=recipe(), samples=16, window=40)
    assert not (tmp_path / "pruned").exists()


def test_oneshot_refuses_what_cannot_fit(fresh, texts, monkeypatch, forget_the_session):
    monkeypatch.setattr(announce, "free_memory", lambda: FreeMemory(host=1000))
    model = fresh()
    with pytest.raises(RoomError, match="GB are free"):
        run(model, texts, recipe())
    assert model.model.layers[0].mlp.down_proj.in_features == 48
