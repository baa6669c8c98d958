"""`funcnet lesion`: a whole study on a small model, interrupted and gone on with."""

import json

import pytest
from typer.testing import CliRunner

from funcnet_plugin import cli, lesioning
from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.errors import AtlasError, FuncnetError, NumbersError
from funcnet_plugin.evaluation.perplexity import perplexities, text_windows
from funcnet_plugin.lesioning import lesion_study
from funcnet_plugin.lesions import select
from funcnet_plugin.lesions.effects import effects, write_effects
from funcnet_plugin.lesions.study import Study
from funcnet_plugin.tasks import write_local_tasks
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import logged
from tests.surveys import write_survey

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def bench(tmp_path_factory, texts):
    """A directory with model, atlas, text and tasks."""
    folder = tmp_path_factory.mktemp("bench")
    make_llama().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_survey(str(folder / "model"), texts, folder / "atlas", cut=1.0)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    pairs = [{"sentence_good": t[:20], "sentence_bad": t[20:40]} for t in texts]
    (folder / "order.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "tasks").mkdir()
    write_local_tasks(folder / "tasks", {}, [folder / "order.jsonl"], "text")
    return folder


def study(bench, **changes) -> Study:
    return Study(
        **{
            "sets": ["L0.N1", "L1.N0+L2.N3"], "thresholds": [1.2], "draws": 2,
            "window": 40, "windows": 4, "texts": {"letters": str(bench / "text.jsonl")},
            "tasks": ["pairs_order"],
            "include_path": str(bench / "tasks"),
        } | changes
    )  # fmt: skip


def run(bench, out, **changes):
    return lesion_study(bench / "model", bench / "atlas", out, study(bench, **changes))


def test_every_lesion_stands_beside_random_neurons(bench, tmp_path):
    rows = run(bench, tmp_path)
    assert [(r["lesion"], r["draw"]) for r in rows] == [
        (None, None), ("L0.N1", None), ("L0.N1", 0), ("L0.N1", 1),
        ("L1.N0+L2.N3", None), ("L1.N0+L2.N3", 0), ("L1.N0+L2.N3", 1),
    ]  # fmt: skip
    windows = text_windows(bench / "text.jsonl", "text", make_tokenizer(), 40, 4)
    dense = perplexities(bench / "model", {"letters": windows}).by_text["letters"]
    assert rows[0]["texts"]["letters"] == pytest.approx(dense, rel=1e-6)
    assert len({r["texts"]["letters"] for r in rows}) == 7  # each is something else
    known = read_atlas(bench / "atlas")
    neurons = known.neurons(["L0.N1"], 1.2)
    assert rows[1]["neurons"] == sum(map(len, neurons.values())) == rows[2]["neurons"]
    assert rows[1]["share"] == pytest.approx(rows[1]["neurons"] / 144)
    assert rows[4]["networks"] == ["L1.N0", "L2.N3"]
    assert all(set(r["tasks"]) == {"pairs_order"} for r in rows)


def test_an_interrupted_study_goes_on(bench, tmp_path, monkeypatch):
    whole = run(bench, tmp_path / "whole")
    measure, seen = lesioning._Bench.measure, []

    def stop_after_three(self, lesion):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(lesion)
        return measure(self, lesion)

    monkeypatch.setattr(lesioning._Bench, "measure", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        run(bench, tmp_path / "half")
    monkeypatch.setattr(
        lesioning._Bench, "measure", lambda s, lesion: seen.append(lesion) or measure(s, lesion)
    )
    assert run(bench, tmp_path / "half") == whole
    assert len(seen) == 7
    assert run(bench, tmp_path / "half", draws=3) != whole
    assert len(seen) == 9  # one more draw of each
    other = run(bench, tmp_path / "half", seed=1)
    assert len(seen) == 13 and [r for r in other if r["draw"] is None] == [
        r for r in whole if r["draw"] is None
    ]


def test_modes_gains_and_thresholds_make_dose_curves(bench, tmp_path):
    rows = run(
        bench, tmp_path, sets=["L0.N1"], modes=["zero", "amplify", "keep"], gains=[0.5, 4.0],
        thresholds=[1.0, 1.5], draws=0, tasks=[],
    )  # fmt: skip
    labels = [r["lesion"] for r in rows[1:]]
    assert len(labels) == 8 and set(labels) == {
        f"L0.N1 {what} z {z}"
        for what in ("zero", "amplify 0.5", "amplify 4", "keep")
        for z in ("1", "1.5")
    }
    by_label = {r["lesion"]: r for r in rows[1:]}
    assert by_label["L0.N1 zero z 1"]["neurons"] > by_label["L0.N1 zero z 1.5"]["neurons"]
    assert by_label["L0.N1 amplify 4 z 1"]["gain"] == 4.0


def test_without_sets_every_network_with_members_is_a_lesion(bench, tmp_path):
    rows = run(bench, tmp_path, sets=[], thresholds=[2.0], draws=0, tasks=[])
    known = read_atlas(bench / "atlas")
    expected = [name for name in known.networks if known.neurons([name], 2.0)]
    assert [r["lesion"] for r in rows[1:]] == expected and 0 < len(expected) < 18


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"texts": {}, "tasks": []}, FuncnetError, "give --text or --task"),
        ({"sets": ["L7.N0"]}, AtlasError, "no network 'L7.N0'"),
        ({"thresholds": [60.0]}, AtlasError, "no members with entries of 60"),
        ({"sets": [], "thresholds": [60.0]}, AtlasError, "no network has members"),
        ({"modes": ["cut"]}, AtlasError, "no lesion mode 'cut'"),
        ({"modes": ["cut"], "sets": []}, AtlasError, "no lesion mode 'cut'"),
        ({"tasks": ["nothing"]}, FuncnetError, "lm-eval knows no task 'nothing'"),
        ({"texts": {"a": "gone.txt"}}, FuncnetError, r"gone\.txt"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    bench, tmp_path, monkeypatch, changes, error, message
):
    monkeypatch.setattr(lesioning._Bench, "measure", lambda *a: pytest.fail("measured"))
    with pytest.raises(error, match=message):
        run(bench, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_an_atlas_of_another_model_is_refused_and_leaves_nothing(bench, tmp_path):
    model = make_llama()
    model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(AtlasError, match="other weights"):
        lesion_study(tmp_path / "model", bench / "atlas", tmp_path / "out", study(bench))
    assert not (tmp_path / "out").exists()


def test_a_gain_that_overflows_is_refused(bench, tmp_path):
    with pytest.raises(NumbersError, match="predicts NaN on the text letters"):
        run(bench, tmp_path, sets=["all"], modes=["amplify"], gains=[1e38], tasks=[])


def test_the_command_says_what_went_beyond_chance(bench, tmp_path):
    arguments = [
        "lesion", bench / "model", "--atlas", bench / "atlas", "--out", tmp_path / "out",
        "--lesion", "L0.N1", "--threshold", "1.2", "--text", f"letters={bench / 'text.jsonl'}",
        "--window", "40", "--windows", "4", "--draws", "2",
    ]  # fmt: skip
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "effects.json").read_text())
    entry = written["L0.N1"]["text/letters"]
    assert entry["low"] < entry["control"] < entry["high"]
    assert entry["beyond_chance"] == (not entry["low"] <= entry["change"] <= entry["high"])
    assert "text/letters" in done.output and "effects.json: all 1 changes" in done.output
    again = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
    assert json.loads(again.stdout) == written


def test_networks_are_chosen_by_what_a_study_found(bench, tmp_path):
    singles = run(bench, tmp_path / "singles", sets=[], draws=0, texts={})
    write_effects(tmp_path / "singles", effects(singles))
    changes = {r["lesion"]: r["tasks"]["pairs_order"] for r in singles[1:]}
    dense = singles[0]["tasks"]["pairs_order"]
    worst = sorted(changes, key=changes.get)[:2]
    assert changes[worst[1]] < dense, "a fixed seed: two networks hurt the task"
    rows = run(
        bench, tmp_path / "chosen", sets=["hurting:pairs_order:2"], draws=0,
        chosen_by=tmp_path / "singles",
    )  # fmt: skip
    assert sorted(changes[name] for name in rows[1]["networks"]) == sorted(
        changes[name] for name in worst
    )


def test_a_choice_needs_a_study_of_single_networks(bench, tmp_path):
    with pytest.raises(AtlasError, match="name its directory with --chosen-by"):
        run(bench, tmp_path, sets=["hurting:pairs_order:2"])
    with pytest.raises(AtlasError, match="holds no study of lesions"):
        run(bench, tmp_path, sets=["hurting:pairs_order:2"], chosen_by=tmp_path / "gone")
    other = tmp_path / "other"
    other.mkdir()
    write_effects(other, {"L0.N1+L0.N2": {}})
    with pytest.raises(AtlasError, match="holds no study of single networks"):
        run(bench, tmp_path, sets=["hurting:pairs_order:2"], chosen_by=other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gains": [0.5]}, "gain and add are for --mode amplify"),
        ({"add": 1.0, "modes": ["zero", "keep"]}, "gain and add are for --mode amplify"),
        ({"chosen_by": "OUT"}, "give --lesion hurting:TASK:N, or leave --chosen-by out"),
        (
            {"chosen_by": "OUT", "sets": ["hurting:pairs_order:1"]},
            "holds the study that chooses, and would lose it",
        ),
    ],
)
def test_what_would_be_left_aside_or_lost_is_refused(bench, tmp_path, changes, message):
    if "chosen_by" in changes:
        changes = changes | {"chosen_by": tmp_path}
    with pytest.raises(AtlasError, match=message):
        run(bench, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_task_that_is_better_the_lower_it_is_is_refused(bench, tmp_path):
    """What lets it rise would count as a gain."""
    tasks = tmp_path / "tasks"
    names = write_local_tasks(tasks, {"prose": bench / "text.jsonl"}, [], "text")
    with pytest.raises(FuncnetError, match=f"{names[0]} measures something that is better the low"):
        run(bench, tmp_path / "out", tasks=names, include_path=str(tasks))


def test_an_atlas_of_a_deeper_model_is_refused(bench, tmp_path):
    make_llama(num_hidden_layers=2).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(AtlasError, match="is of a model of 3 layers, and this one has 2"):
        lesion_study(tmp_path / "model", bench / "atlas", tmp_path / "out", study(bench))


def test_rows_of_another_model_or_other_questions_are_not_given_back(bench, tmp_path):
    """The MLPs are the same, so the atlas goes with both models."""
    other = make_llama()
    for layer in other.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    other.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    asked = study(bench, sets=["L0.N1"], draws=0)
    first = lesion_study(bench / "model", bench / "atlas", tmp_path / "out", asked)
    second = lesion_study(tmp_path / "model", bench / "atlas", tmp_path / "out", asked)
    assert second[0]["texts"] != first[0]["texts"]
    pairs = [{"sentence_good": "cba", "sentence_bad": "abc"}] * 3
    (tmp_path / "order.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_local_tasks(tmp_path / "tasks", {}, [tmp_path / "order.jsonl"], "text")
    asked = study(bench, sets=["L0.N1"], draws=0, include_path=str(tmp_path / "tasks"))
    third = lesion_study(bench / "model", bench / "atlas", tmp_path / "out", asked)
    assert third[0]["tasks"]["pairs_order"] in (0.0, 1.0)  # three times the same question


def test_the_fewest_networks_that_keep_a_task(bench, tmp_path):
    share = 0.5
    rows = run(bench, tmp_path, sets=[f"enough:pairs_order:{share}"], draws=2, texts={})
    dense, kept = rows[0]["tasks"]["pairs_order"], rows[1]
    assert kept["mode"] == "keep" and [r["draw"] for r in rows[1:]] == [None, 0, 1]
    assert kept["tasks"]["pairs_order"] >= share * dense
    strongest = select(read_atlas(bench / "atlas"), f"strongest:{len(kept['networks'])}")
    assert kept["networks"] == strongest
    tried = [json.loads(line)["row"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    one_less = [r for r in tried if len(r["networks"]) == len(strongest) - 1 > 0]
    assert all(r["tasks"]["pairs_order"] < share * dense for r in one_less)
    with pytest.raises(AtlasError, match="needs the task sort; give it with --task"):
        run(bench, tmp_path, sets=["enough:sort"])


def test_rows_of_another_atlas_are_not_taken_for_its_own(bench, tmp_path, texts):
    """A network of the same name and size may be another one there."""
    write_survey(str(bench / "model"), texts, tmp_path / "other", cut=1.0, samples_per_group=10)
    mine, other = read_atlas(bench / "atlas"), read_atlas(tmp_path / "other")

    def members(atlas, name) -> list[int]:
        (neurons,) = atlas.neurons([name], 1.2).values()
        return neurons.tolist()

    name = next(
        name for name in mine.networks
        if len(members(mine, name)) == len(members(other, name))
        and members(mine, name) != members(other, name)
    )  # fmt: skip
    asked = study(bench, sets=[name], draws=0, tasks=[])
    first = lesion_study(bench / "model", bench / "atlas", tmp_path / "out", asked)
    second = lesion_study(bench / "model", tmp_path / "other", tmp_path / "out", asked)
    assert second == lesion_study(bench / "model", tmp_path / "other", tmp_path / "alone", asked)
    assert second[1] != first[1] and second[0] == first[0]


def test_a_task_at_chance_is_named_before_the_lesions(bench, tmp_path):
    with logged() as said:
        rows = run(bench, tmp_path, sets=["L0.N1"], draws=0)
    score = rows[0]["tasks"]["pairs_order"]
    assert 0.3 < score < 0.7  # the model is not trained
    assert any(f"scores {score:.3f} in pairs_order and guessing gives 0.500" in s for s in said)
