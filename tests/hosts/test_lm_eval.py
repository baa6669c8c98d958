"""The `funcnet` model of lm-eval against lm-eval's own `hf`, on local tasks."""

import json
import shutil

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.checkpoints.block import write_kept
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.hosts.lm_eval import FuncnetLM
from funcnet_plugin.tasks import FOLDER, write_local_tasks
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import recipe, run
from tests.hosts.llmcompressor.test_quantization import FP8, w4a16
from tests.surveys import write_survey

pytestmark = [
    pytest.mark.usefixtures("forget_the_session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # lm-eval passes what it read from the config back to transformers
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning"),
]

KINDS = {
    "uniform": {},
    "per_layer": {"allocation": "threshold", "align": 1},
    "gptq": {"align": 8, "then": w4a16()},
    "fp8": {"then": FP8},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, texts):
    base = tmp_path_factory.mktemp("lm_eval")
    make_llama().save_pretrained(base / "dense")
    make_tokenizer().save_pretrained(base / "dense")
    for kind, fields in KINDS.items():
        run(str(base / "dense"), texts, recipe(**fields), output_dir=str(base / kind))
        make_tokenizer().save_pretrained(base / kind)
    return base


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tasks")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"page": t[:90]}) + "\n" for t in texts[:4]))
    pairs = folder / "order.jsonl"
    rows = [{"sentence_good": t[:20], "sentence_bad": t[20:40]} for t in texts]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = write_local_tasks(folder, {"letters": text}, [pairs], "page")
    assert names == ["letters", "pairs_order"]
    return folder


def scores(model: str, tasks, **arguments) -> dict:
    output = simple_evaluate(
        model=model,
        model_args={"device": "cpu", "dtype": "float32", "batch_size": 4} | arguments,
        tasks=["letters", "pairs_order"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return {name: [s["resps"] for s in samples] for name, samples in output["samples"].items()}


@pytest.mark.parametrize("kind", ["dense", *KINDS])
def test_the_numbers_are_those_of_hf(checkpoints, tasks, kind):
    path = str(checkpoints / kind)
    assert scores("funcnet", tasks, pretrained=path) == scores("hf", tasks, pretrained=path)


def test_a_mask_costs_what_cutting_without_repair_costs(checkpoints, tasks):
    masked = scores(
        "funcnet", tasks,
        pretrained=str(checkpoints / "dense"), mask=str(checkpoints / "per_layer"),
    )  # fmt: skip
    cut = scores("hf", tasks, pretrained=str(checkpoints / "per_layer"))
    dense = scores("hf", tasks, pretrained=str(checkpoints / "dense"))
    for name in cut:
        flat = [
            [float(part[0]) for sample in run[name] for resp in sample for part in _pairs(resp)]
            for run in (masked, cut, dense)
        ]
        assert flat[0] == pytest.approx(flat[1], abs=1e-3)
        assert flat[0] != pytest.approx(flat[2], abs=1e-1)


@pytest.fixture(scope="module")
def atlas(checkpoints, texts):
    write_survey(str(checkpoints / "dense"), texts, checkpoints / "atlas", cut=1.0)
    return checkpoints / "atlas"


def test_a_lesion_costs_what_the_mask_without_its_neurons_costs(
    checkpoints, atlas, tasks, tmp_path
):
    dense = str(checkpoints / "dense")
    lesion = {"atlas": str(atlas), "lesion": "L0.N1+L2.N3", "threshold": 1.2}
    neurons = read_atlas(atlas).neurons(["L0.N1", "L2.N3"], threshold=1.2)
    gone = [neurons[i].tolist() if i in neurons else [] for i in range(3)]
    write_kept(tmp_path, [48] * 3, [sorted(set(range(48)) - set(some)) for some in gone])
    masked = scores("funcnet", tasks, pretrained=dense, mask=str(tmp_path))
    assert scores("funcnet", tasks, pretrained=dense, **lesion) == masked
    assert scores("funcnet", tasks, pretrained=dense) != masked
    strong = scores("funcnet", tasks, pretrained=dense, **lesion, mode="amplify", gain=3.0)
    assert strong != masked


def test_an_atlas_of_another_model_is_refused(checkpoints, atlas, tmp_path):
    arguments = {"atlas": str(atlas), "lesion": "L0.N1", "threshold": 1.2, "device": "cpu"}
    with pytest.raises(FuncnetError, match="layer 0 has a width of 48, and here it is"):
        FuncnetLM(pretrained=str(checkpoints / "uniform"), **arguments)
    FuncnetLM(pretrained=str(checkpoints / "dense"), **arguments, dtype="bfloat16")
    make_llama(num_hidden_layers=2).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FuncnetError, match="is of a model of 3 layers, and this one has 2"):
        FuncnetLM(pretrained=str(tmp_path), **arguments)


def test_a_directory_that_is_not_there_is_called_that(tmp_path):
    with pytest.raises(FuncnetError, match=r"there is no .*gone; give a checkpoint directory"):
        FuncnetLM(pretrained=str(tmp_path / "gone"))


def test_a_gain_that_overflows_is_refused_while_it_scores(checkpoints, atlas, tasks):
    with pytest.raises(FuncnetError, match=r"predicts NaN: gain 1e\+38 and add 0 overflow"):
        scores(
            "funcnet", tasks, pretrained=str(checkpoints / "dense"), atlas=str(atlas),
            lesion="all", threshold=1.2, mode="amplify", gain=1e38,
        )  # fmt: skip


def _pairs(response):
    """Rolling likelihoods are bare numbers, others (log-likelihood, greedy) pairs."""
    parts = response if isinstance(response, list) else [response]
    return [part if isinstance(part, (tuple, list)) else (part, None) for part in parts]


def test_it_is_registered_once_under_its_name():
    assert get_model("funcnet") is FuncnetLM


def test_bad_arguments_are_one_sentence(checkpoints, tmp_path):
    dense = str(checkpoints / "dense")
    write_kept(tmp_path, [48, 48], [[0], [1]])
    for arguments, message in [
        ({"pretrianed_on": 1}, "no argument 'pretrianed_on'"),
        ({"lesion": "L0.N1"}, "atlas= and lesion= go together"),
        ({"atlas": str(tmp_path), "lesion": "L0.N1"}, "there is no atlas at"),
        ({"mask": str(tmp_path / "gone.json")}, "no kept neurons at"),
        ({"mask": str(tmp_path)}, "2 layers of widths 48, and the model has 3 of 48"),
    ]:
        with pytest.raises(FuncnetError, match=message) as error:
            FuncnetLM(pretrained=dense, device="cpu", **arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 44}, "disagree: model.layers.0.mlp.*by config.json"),
        ({"per_layer_config": {"9": {"intermediate_size": 8}}}, "layer indices in the range"),
        ({"per_layer_config": {"1": {"intermediate_size": 9}}}, "disagree: model.layers.1.mlp"),
        ({"per_layer_config": {"1": {"intermediate_size": -9}}}, "check the widths in it"),
    ],
)
def test_config_and_weights_that_disagree(checkpoints, tmp_path, change, message):
    path = tmp_path / "edited"
    shutil.copytree(checkpoints / "uniform", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FuncnetError, match=message) as error:
        FuncnetLM(pretrained=str(path), device="cpu")
    assert "\n" not in str(error.value)


def test_the_papers_tasks_are_a_group_of_tasks_that_lm_eval_has():
    manager = TaskManager(include_path=str(FOLDER))
    assert "funcnet_paper" in manager.all_groups
    names = yaml.safe_load((FOLDER / "funcnet_paper.yaml").read_text())["task"]
    assert len(names) == 7 and set(names) <= set(manager.all_tasks)


def test_local_tasks_need_their_files(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"words": "a"}\n')
    for texts, pairs, message in [
        ({"a": tmp_path / "gone.jsonl"}, [], "cannot be read"),
        ({"a": tmp_path / "other.jsonl"}, [], "no field 'text'"),
        ({}, [tmp_path / "other.jsonl"], "no field 'sentence_good'"),
    ]:
        with pytest.raises(FuncnetError, match=message):
            write_local_tasks(tmp_path / "out", texts, pairs, "text")
    assert not (tmp_path / "out").exists()
