"""An atlas on disk, what is refused of one, and pruning by it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from funcnet_plugin.atlas import read_atlas, write_atlas
from funcnet_plugin.atlas.files import read_contexts, read_courses
from funcnet_plugin.checkpoints.block import read_kept
from funcnet_plugin.errors import AtlasError, RecipeError
from tests.conftest import make_llama
from tests.hosting import networks, recipe, run
from tests.surveys import survey_of

pytestmark = pytest.mark.usefixtures("forget_the_session")
STRATEGIES = ["local", "windows", "global"]


@pytest.fixture(scope="module")
def surveys(texts):
    """Strategy -> what was found in the random LLaMA."""
    return {strategy: survey_of(make_llama(), texts, strategy=strategy) for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def written(surveys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlases")
    for strategy, found in surveys.items():
        write_atlas(
            folder / strategy, found.atlas, found.courses, found.contexts, found.connectivity
        )
    return folder


@pytest.fixture
def atlas(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written / "local", tmp_path / "atlas")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_read_is_what_was_found(surveys, written, strategy):
    found, atlas = surveys[strategy], read_atlas(written / strategy)
    assert atlas.facts == json.loads(json.dumps(found.atlas.facts))
    assert atlas.networks == found.atlas.networks
    for name in atlas.networks:
        mine, other = atlas.entries(name), found.atlas.entries(name)
        for field in ("layer", "signal", "neuron", "z"):
            assert torch.equal(getattr(mine, field), getattr(other, field))
    for layer, score in found.atlas.scores.items():
        assert torch.equal(atlas.scores[layer], score)
        assert torch.equal(atlas.means[layer], found.atlas.means[layer])
    courses = read_courses(written / strategy)
    assert courses.keys() == found.courses.keys()
    assert all(torch.equal(courses[key], found.courses[key]) for key in courses)
    assert read_contexts(written / strategy) == found.contexts


def test_contexts_are_a_table_for_pandas(written):
    import pandas

    table = pandas.read_parquet(written / "local" / "contexts.parquet")
    assert set(table.network) == {f"L{layer}.N{k}" for layer in range(3) for k in range(6)}
    assert (table["activities"].map(len) == table["tokens"].map(len)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_pruning_by_it_keeps_the_neurons_of_the_direct_run(
    fresh, texts, written, tmp_path, strategy, ratio
):
    """Where the direct run measures all layers on the dense model, as a survey does."""
    fields = {"pruning_ratio": ratio, "allocation": "threshold"}
    scorer = networks({"n_init": 2}, strategy=strategy)
    run(fresh(), texts, recipe(scorer=scorer, **fields), output_dir=str(tmp_path / "direct"))
    by_atlas = {"name": "atlas", "path": str(written / strategy)}
    run(fresh(), texts, recipe(scorer=by_atlas, **fields), output_dir=str(tmp_path / "atlas"))
    direct, mine = read_kept(tmp_path / "direct"), read_kept(tmp_path / "atlas")
    assert direct == mine and direct[1][0] != list(range(48))


def test_the_command_takes_its_scores_for_any_ratio(checkpoint, texts, tmp_path):
    from typer.testing import CliRunner

    from funcnet_plugin import cli

    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    common = ["--data", text, "--samples", "16", "--window", "40"]

    def call(*arguments):
        return CliRunner().invoke(cli.app, [str(a) for a in arguments])

    done = call("atlas", checkpoint, *common, "--out", tmp_path / "atlas", "--components", 6)
    assert done.exit_code == 0, done.output
    assert "18 networks in 3 blocks, found again in other text at " in done.output
    contexts = read_contexts(tmp_path / "atlas")
    assert all(len(row["token"]) == 1 or row["token"].startswith("<") for row in contexts)
    fields = ["--set", "align=4", "--set", "allocation=threshold", "--set", "repair=none"]
    for ratio in ("0.1", "0.3"):
        done = call("prune", checkpoint, *common, *fields, "--ratio", ratio,
                    "--from-atlas", tmp_path / "atlas", "--out", tmp_path / ratio)  # fmt: skip
        assert done.exit_code == 0, done.output
        direct = ["--set", "scorer.networks.n_components=6",
                  "--set", "scorer.networks.samples_per_group=8"]  # fmt: skip
        done = call("prune", checkpoint, *common, *fields, *direct, "--ratio", ratio,
                    "--out", tmp_path / f"direct-{ratio}")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert read_kept(tmp_path / ratio) == read_kept(tmp_path / f"direct-{ratio}")


def spoiled_json(change):
    def spoil(directory):
        path = directory / "atlas.json"
        content = json.loads(path.read_text())
        del content["digest"]  # as an atlas of before has none
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def cut_short(name):
    def spoil(directory):
        path = directory / name
        path.write_bytes(path.read_bytes()[:-100])

    return spoil


def edited(directory):
    path = directory / "networks.safetensors"
    tensors = load_file(path)
    tensors["scores/0"] = tensors["scores/0"] + 1
    save_file(tensors, path)


def reworded(directory):
    path = directory / "atlas.json"
    path.write_text(path.read_text().replace('"kurtosis"', '"curtosis"', 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "atlas.json").unlink(), "there is no atlas at"),
        (reworded, "is not what was written: it was edited; make the atlas again"),
        (lambda d: (d / "networks.safetensors").unlink(), "lacks networks.safetensors"),
        (cut_short("networks.safetensors"), "was edited or cut short"),
        (cut_short("atlas.json"), "is not the file of an atlas"),
        (edited, "was edited or cut short"),
        (spoiled_json(lambda c: c.update(format=99)), "is of format 99"),
        (spoiled_json(lambda c: c["model"].pop("widths")), "no whole atlas"),
        (spoiled_json(lambda c: c["model"].update(widths=[48, 48])), "no whole atlas"),
        (spoiled_json(lambda c: c["model"].update(widths=[48, 20, 48])), "no whole atlas"),
        (spoiled_json(lambda c: c["networks"][0].update(number=77)), "has no map"),
        (spoiled_json(lambda c: c["files"].clear()), "lacks networks.safetensors"),
    ],
)  # fmt: skip
def test_a_spoiled_atlas_is_refused_in_one_sentence(atlas, spoil, message):
    spoil(atlas)
    with pytest.raises(AtlasError, match=message) as error:
        read_atlas(atlas)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_only_files_of_the_atlas_are_opened(atlas, tmp_path):
    """A path that leads elsewhere is no name of a file that is read."""
    secret = tmp_path / "secret.safetensors"
    shutil.copy(atlas / "networks.safetensors", secret)
    path = atlas / "atlas.json"
    content = json.loads(path.read_text())
    del content["digest"]
    content["files"] = {"../secret.safetensors": content["files"]["networks.safetensors"]}
    path.write_text(json.dumps(content))
    with pytest.raises(AtlasError, match=r"lacks networks\.safetensors"):
        read_atlas(atlas)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("L1.N9", r"no network 'L1.N9'; L1 has L1.N0 to L1.N5"),
        ("L7.N0", r"its networks stand under L0 to L2, as in L0.N0"),
    ],
)
def test_a_network_that_is_not_there_is_named_with_those_that_are(written, name, message):
    with pytest.raises(AtlasError, match=message):
        read_atlas(written / "local").neurons([name])


def test_members_below_the_cut_cannot_be_told(written):
    with pytest.raises(AtlasError, match="hold entries of 2 and more"):
        read_atlas(written / "local").neurons(["L0.N0"], threshold=1.0)


def test_an_atlas_of_other_weights_is_refused_before_the_run(texts, written, tmp_path):
    torch.manual_seed(5)
    other = make_llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    text = recipe(scorer={"name": "atlas", "path": str(written / "local")})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    with pytest.raises(AtlasError, match="other weights: those of layer 1 differ"):
        run(model, texts, text)


def test_an_atlas_of_other_widths_is_refused(texts, written, tmp_path):
    make_llama(intermediate_size=40).save_pretrained(tmp_path / "other")
    text = recipe(scorer={"name": "atlas", "path": str(written / "local")})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    with pytest.raises(AtlasError, match="layer 0 has a width of 48, and here it is 40"):
        run(model, texts, text)


def test_a_recipe_without_networks_has_no_place_for_an_atlas():
    from funcnet_plugin.recipe import load_recipe, scored_by_atlas

    with pytest.raises(RecipeError, match="takes the place of the scorer networks"):
        scored_by_atlas(load_recipe("prune_best"), "somewhere")
    (stage,) = scored_by_atlas(load_recipe("ica_prune"), "somewhere").values()
    (fields,) = (m["FunctionalNetworkModifier"] for m in stage.values())
    assert fields["scorer"] == [{"name": "atlas", "path": "somewhere"}, "effect"]
