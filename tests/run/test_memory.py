"""What a run takes in memory is known before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from funcnet_plugin.errors import RoomError
from funcnet_plugin.measure.free_memory import FreeMemory, _left_in_cgroup
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.run import Request, Run, stages
from funcnet_plugin.run.fitting import check_fits
from funcnet_plugin.run.memory import memory
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Scorer
from tests.run import peaks

GB = 2**30
WORK = Workload(samples=512, length=2048)
NETWORKS = {"name": "networks", "n_components": 128, "samples_per_group": 40}


@pytest.fixture(scope="module")
def large():
    """Four layers of LLaMA-7B, without weights."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=4, vocab_size=32000,
        dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def planned(model, scorers=("effect",), repair="least_squares", work=WORK, **fields):
    made = tuple(s if isinstance(s, Scorer) else SCORERS.make(s) for s in scorers)
    request = Request(
        pruning_ratio=0.2, scorers=made, repair=REPAIRS.make(repair), ratio_scope="mlp", **fields
    )
    return Run(request, model, work.samples)


def needed(model, *, gpu=False, work=WORK, free=None, **asked):
    run = planned(model, work=work, **asked)
    return {s.name: s for s in memory(run.request, run.plan, model, work, gpu=gpu, free=free)}


def heads_needed(model, heads_ratio):
    request = Request(
        pruning_ratio=0.3,
        scorers=(SCORERS.make("effect"),),
        repair=REPAIRS.make("least_squares"),
        heads_ratio=heads_ratio,
    )
    plan = Run(request, model, WORK.samples).plan
    return {s.name: s for s in memory(request, plan, model, WORK, gpu=False)}


def checked(model, free, work=WORK, **asked):
    run = planned(model, work=work, **asked)
    return check_fits(run.request, run.plan, model, work, free)


def test_heads_take_the_moments_of_all_attentions_and_of_one_layer_at_a_time(large):
    # of 32 heads, each with keys and values of its own; 16 divide the hidden size
    none = needed(large)
    assert stages.HEADS not in none
    of_all = 4 * 8 * 4096**2  # layers, bytes
    for heads_ratio, widest in ((0.5, 4096), ("auto", 11008)):
        found = heads_needed(large, heads_ratio)[stages.HEADS]
        terms = {term.what: term.host + term.gpu for term in found.terms}
        assert terms["moments of all heads"] == of_all
        assert terms["moments of a layer"] == 4 * 8 * widest**2


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux gives them")
def test_the_formula_is_what_runs_take():
    names = list(peaks.RECIPES)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "LLM_COMPRESSOR_LOG_DISABLED": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        # glibc keeps freed blocks of a few MB, which real models have none of
        "MALLOC_MMAP_THRESHOLD_": "1000000",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.run.peaks", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"measured"')]
    assert len(found) == len(names), done.stderr
    for name, one in zip(names, found, strict=True):
        share = max(one["needed"].values()) / one["measured"]
        assert 0.8 <= share <= 1.5, f"{name}: {one}"


def test_stages_are_those_that_the_recipe_has(large):
    plain = needed(large)
    assert list(plain) == [stages.CALIBRATION, stages.SCORING, stages.REPAIR, stages.SAVING]
    full = needed(
        large, scorers=["surgeon", NETWORKS], repair="least_squares", own_text=0.25, atlas="atlas"
    )
    tuned = needed(large, repair="distillation")
    behind = [stages.REPAIR, stages.DISTILLATION, stages.SAVING]
    assert list(tuned) == [stages.PREDICTIONS, stages.CALIBRATION, stages.SCORING, *behind]
    assert {*full, *tuned, *heads_needed(large, 0.5)} == set(stages.NAMES)
    for found in (plain, full, tuned):  # in the order of the run
        assert list(found) == [name for name in stages.NAMES if name in found]


def test_without_a_gpu_all_is_counted_as_the_hosts(large):
    asked = {"scorers": [NETWORKS, "effect"], "repair": "distillation", "own_text": 0.25}
    alone, beside = needed(large, **asked), needed(large, gpu=True, **asked)
    for name, stage in alone.items():
        assert stage.gpu == 0
        assert stage.host >= beside[name].host and stage.host > 0
    weights = beside[stages.SAVING].terms[0].host
    assert beside[stages.OWN_TEXT].gpu > weights  # but one layer is enough
    assert sum(term.gpu for term in beside[stages.OWN_TEXT].sent) < weights
    assert beside[stages.OWN_MOMENTS].gpu < weights and beside[stages.OWN_MOMENTS].sent is None


def test_more_text_takes_more_where_it_waits(large):
    half = Workload(WORK.samples // 2, WORK.length)
    much, little = (needed(large, repair="distillation", work=w) for w in (WORK, half))
    states = half.tokens * 4096 * 2  # in bfloat16
    assert much[stages.REPAIR].host - little[stages.REPAIR].host >= states
    assert much[stages.SAVING].host == little[stages.SAVING].host


def test_max_memory_bounds_the_networks(large):
    free = needed(large, scorers=[NETWORKS])[stages.SCORING].host
    bound = needed(large, scorers=[NETWORKS], max_memory="1GB")[stages.SCORING].host
    assert bound < free - GB


def test_parts_of_other_packages_say_what_they_take(large):
    class Hungry(Scorer):
        """Takes a lot."""

        name = "hungry"

        def score(self, evidence):
            return torch.arange(evidence.unit.width)

        def working_bytes(self, unit, workload, setting):
            return 100 * GB

    stage = needed(large, scorers=[Hungry()], repair="none")[stages.SCORING]
    assert stage.host > 100 * GB and stage.mostly == "scoring by hungry"


def test_a_run_that_fits_says_nothing(large):
    assert checked(large, FreeMemory(host=200 * GB)) is None


@pytest.mark.parametrize("host", [1 * GB, 12 * GB, 20 * GB])
def test_what_cannot_fit_is_refused_with_the_stage_and_what_would(large, host):
    asked = {"scorers": [NETWORKS, "effect"], "repair": "distillation", "own_text": 0.25}
    with pytest.raises(RoomError) as error:
        checked(large, FreeMemory(host=host), **asked)
    said = str(error.value)
    assert "the stage 'scoring' needs about" in said
    assert f"{host / GB:.3g}" in said or f"{host / GB:.2f}" in said
    if host == GB:
        assert "none of the smaller runs" in said
    else:
        assert "what fits: " in said


def test_what_is_said_to_fit_does(large):
    asked = {"scorers": ["effect"], "repair": "distillation"}
    top = max(s.host for s in needed(large, **asked).values())
    free = FreeMemory(host=3 * top // 4)
    with pytest.raises(RoomError, match="repair: least_squares, or ") as error:
        checked(large, free, **asked)
    assert checked(large, free, **asked | {"repair": "least_squares"}) is None
    samples = int(str(error.value).split(" samples")[0].split()[-1])
    assert samples < WORK.samples
    assert checked(large, free, work=Workload(samples, WORK.length), **asked) is None


def test_what_is_a_little_over_is_warned_of(large):
    top = max(s.host for s in needed(large).values())
    warning = checked(large, FreeMemory(host=int(top / 1.1)))
    assert "so the run may fail; what fits: " in warning
    with pytest.raises(RoomError):
        checked(large, FreeMemory(host=int(top / 1.3)))
    # the system can move something to the disk
    assert "may fail" in checked(large, FreeMemory(host=int(top / 1.3), swap=top))


def test_weights_that_are_loaded_are_not_needed_again(large):
    run = planned(large)
    top = max(s.host for s in memory(run.request, run.plan, large, WORK, gpu=False))
    free = FreeMemory(host=top - GB // 2)
    assert check_fits(run.request, run.plan, large, WORK, free) is not None
    assert check_fits(run.request, run.plan, large, WORK, free, loaded=GB) is None


def test_passes_without_room_for_all_weights_are_warned_of(large):
    asked = {"scorers": ["loss_effect"], "repair": "none"}
    needs = needed(large, gpu=True, **asked)[stages.GRADIENTS].gpu
    warning = checked(large, FreeMemory(host=200 * GB, gpu=needs - 1), **asked)
    assert "the stage 'gradients' needs about" in warning and "GPU's memory" in warning
    assert "weights are sent there for every batch" in warning
    with pytest.raises(RoomError, match="the GPU's memory"):
        checked(large, FreeMemory(host=200 * GB, gpu=GB // 4), **asked)


def test_batches_grow_with_the_memory_that_is_free(large):
    asked = {"scorers": ["surgeon"], "own_text": 0.25, "gpu": True}
    least, more = (
        needed(large, free=free, **asked) for free in (None, FreeMemory(100 * GB, gpu=60 * GB))
    )
    for name in (stages.OWN_TEXT, stages.OWN_MOMENTS, stages.CALIBRATION):
        assert least[name].gpu < more[name].gpu < 60 * GB
    given = Workload(WORK.samples, WORK.length, batch=1, joined=False)
    kept = needed(large, free=FreeMemory(100 * GB, gpu=60 * GB), work=given, **asked)
    assert kept[stages.CALIBRATION].gpu == least[stages.CALIBRATION].gpu


def test_the_limit_of_a_container_counts_without_its_files(tmp_path):
    mine = tmp_path / "mine"
    group = tmp_path / "jobs" / "one"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000\n")
    (group.parent / "memory.current").write_text("700\n")
    (group.parent / "memory.stat").write_text("anon 400\nactive_file 100\ninactive_file 200\n")
    mine.write_text("0::/jobs/one\n")
    assert _left_in_cgroup(tmp_path, mine) == 600
    mine.write_text("0::/elsewhere\n")
    assert _left_in_cgroup(tmp_path, mine) is None
    assert _left_in_cgroup(tmp_path, tmp_path / "none") is None


def test_the_limit_of_an_older_container_counts(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("900\n")
    (tmp_path / "memory" / "memory.stat").write_text("active_file 0\ninactive_file 50\n")
    mine = tmp_path / "mine"
    mine.write_text("4:cpu,memory:/outside/name\n0::/\n")
    assert _left_in_cgroup(tmp_path, mine) == 150
