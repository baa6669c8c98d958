"""Whether two models have a common origin, told by time courses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from typer.testing import CliRunner

from funcnet_plugin import cli
from funcnet_plugin.atlas import read_atlas, write_atlas
from funcnet_plugin.atlas.files import read_courses
from funcnet_plugin.atlas.lineage import (
    MEASURED,
    Activity,
    _kinds,
    _rest,
    false_alarms,
    kinship,
    read_activity,
    verdict,
)
from funcnet_plugin.errors import AtlasError
from tests.conftest import make_llama
from tests.surveys import survey_of

SETTINGS = {
    "n_components": 4, "signals": ["act", "up"], "strategy": "local", "layers_per_window": 3,
}  # fmt: skip


def text(n_samples: int = 30, window: int = 40, seed: int = 0):
    """Random tokens of 20 kinds."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 20, (n_samples * window,), generator=generator)
    return tokens, torch.full((n_samples,), window)


def activity(courses: dict[str, torch.Tensor], **changes) -> Activity:
    tokens, samples = text()
    unit = {k: torch.nn.functional.normalize(c - c.mean(0), dim=0) for k, c in courses.items()}
    return replace(Activity("here", SETTINGS, tokens, samples, unit, 1000), **changes)


def noise(seed: int, k: int = 4) -> torch.Tensor:
    return torch.randn(1200, k, generator=torch.Generator().manual_seed(seed))


def test_what_tokens_explain_is_what_a_regression_on_them_explains():
    tokens, samples = text()
    courses = noise(0) + tokens[:, None] * torch.tensor([0.2, 0.0, 0.1, 0.3])
    kinds = _kinds(tokens, samples)
    dummies = np.concatenate([np.eye(int(k.max()) + 1)[k.numpy()] for k in kinds], axis=1)
    fitted = dummies @ np.linalg.lstsq(dummies, courses.double().numpy(), rcond=None)[0]
    rest = courses.double().numpy() - fitted
    rest /= np.linalg.norm(rest, axis=0)
    assert np.abs(_rest(courses, kinds).numpy() - rest).max() < 1e-4


def test_the_token_before_the_first_of_a_sample_is_none():
    tokens, samples = torch.tensor([5, 6, 5, 6, 5]), torch.tensor([3, 2])
    alike, before, place = _kinds(tokens, samples)
    assert alike.tolist() == [0, 1, 0, 1, 0]
    assert before.tolist() == [0, 1, 2, 0, 2]
    assert place.tolist() == [0, 1, 2, 0, 1]


def test_courses_of_which_tokens_explain_all_are_left_out():
    tokens, samples = text()
    place = torch.arange(40).repeat(30)
    courses = torch.stack([tokens.float() + 0.1 * place, noise(1)[:, 0]], dim=1)
    assert _rest(courses, _kinds(tokens, samples)).shape == (1200, 1)


def test_a_share_is_that_of_a_regression_adjusted():
    mine, theirs = noise(2), noise(3)
    theirs[:, :2] += mine[:, 1:3]
    first, second = activity({"L0": mine}), activity({"L0": theirs})
    x, y = first.courses["L0"].double().numpy(), second.courses["L0"].double().numpy()

    def adjusted(of, by):
        rest = of - by @ np.linalg.lstsq(by, of, rcond=None)[0]
        return np.mean(1 - (rest**2).sum(0) * 1000 / (1000 - 4))

    found = kinship(first, second)
    assert found.of_first == pytest.approx(adjusted(x, y), abs=1e-6)
    assert found.of_second == pytest.approx(adjusted(y, x), abs=1e-6)
    assert found.similarity == pytest.approx((found.of_first + found.of_second) / 2)


def test_the_best_block_counts_wherever_it_is():
    mine = noise(4)
    mixed = mine @ torch.linalg.qr(noise(5)[:4])[0]
    first, second = activity({"L0": mine}), activity({"L0": noise(6), "L1": mixed})
    found = kinship(first, second)
    assert found.of_first == pytest.approx(1.0, abs=1e-5)
    assert found.blocks == {"L0": ("L1", pytest.approx(1.0, abs=1e-5))}


def test_courses_that_depend_on_each_other_explain_no_more():
    mine, theirs = noise(7), noise(8)
    twice = activity({"L0": torch.cat([theirs, theirs[:, :1]], dim=1)})
    once = activity({"L0": theirs})
    first = activity({"L0": mine})
    assert kinship(first, twice).of_first == pytest.approx(
        1 - (1 - kinship(first, once).of_first) * 996 / 995, abs=1e-5
    )


def test_courses_without_anything_in_common_explain_nothing():
    shares = [
        kinship(activity({"L0": noise(10 + i)}), activity({"L0": noise(50 + i)})).similarity
        for i in range(20)
    ]
    assert abs(np.mean(shares)) < 3 * np.std(shares) / 20**0.5 + 5e-4


def test_false_alarms_are_those_of_a_t_test():
    unrelated = [0.2, 0.3, 0.25, 0.4]
    logits = torch.tensor(unrelated).double().logit().numpy()
    for similarity in (0.1, 0.3, 0.8):
        own = [np.log(similarity / (1 - similarity))]
        expected = ttest_ind(own, logits, alternative="greater").pvalue
        assert false_alarms(similarity, unrelated) == pytest.approx(expected, rel=1e-5)


def test_measured_pairs_are_those_of_the_benchmark():
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "lineage.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    roots = [row for row in rows if row["root"] != row["other"] and not row["how"]]
    assert list(MEASURED) == sorted(round(row["explained"], 3) for row in roots)


def test_verdicts():
    unrelated = [0.2, 0.3, 0.25, 0.4]
    assert verdict(0.9, unrelated) == "stems from the same model"  # 0.003
    assert verdict(0.41, unrelated) == "unclear"  # 0.13
    assert verdict(0.4, unrelated) == "no sign of a common origin"
    with pytest.raises(AtlasError, match="takes 3 unrelated models or more and there are 2"):
        false_alarms(0.5, [0.1, 0.2])


@pytest.fixture(scope="module")
def atlases(texts, tmp_path_factory):
    """Atlases of a LLaMA, of the same with its neurons in another order, and of others."""
    folder = tmp_path_factory.mktemp("atlases")
    models = {"same": random_llama(1), "reordered": reordered(random_llama(1))}
    models |= {f"other{seed}": random_llama(seed) for seed in (2, 3, 4, 5)}
    for name, model in models.items():
        found = survey_of(model, texts, samples_per_group=20)
        write_atlas(folder / name, found.atlas, found.courses, found.contexts, {})
    return folder


@torch.no_grad()
def random_llama(seed: int):
    """Few directions of the hidden state matter to its MLPs, as in models that were trained."""
    model = make_llama().eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.3)
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.copy_(0.6 ** torch.arange(24))
    return model


@torch.no_grad()
def reordered(model):
    """Permutes the neurons of every MLP and scales them, up and down; the function stays."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        order = torch.randperm(48, generator=generator)
        scale = 2.0 ** torch.randint(-2, 3, (48, 1), generator=generator)
        mlp = layer.mlp
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[order] * scale)
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order] / scale.T)
    return model


def similarity(folder, name: str) -> float:
    return kinship(read_activity(folder / "same"), read_activity(folder / name)).similarity


def test_order_and_scale_of_neurons_change_nothing(atlases):
    assert similarity(atlases, "reordered") == pytest.approx(1.0, abs=1e-5)


def test_other_seeds_are_not_alike(atlases):
    assert all(similarity(atlases, f"other{seed}") < 0.2 for seed in (2, 3, 4, 5))


def edited(source, target, **changes):
    """A copy of an atlas with other tensors among its courses; one that is None is left out."""
    atlas = read_atlas(source)
    courses = read_courses(source) | changes
    kept = {key: value for key, value in courses.items() if value is not None}
    write_atlas(target, atlas, kept, [{"network": "L0.N0"}], {})


def test_atlases_of_other_text(atlases, tmp_path):
    tokens = read_courses(atlases / "same")["tokens"]
    edited(atlases / "same", tmp_path / "b", tokens=tokens.flip(0))
    with pytest.raises(AtlasError, match="are of other text, other windows, or models with anoth"):
        kinship(read_activity(atlases / "same"), read_activity(tmp_path / "b"))


def test_atlases_of_other_networks(atlases):
    mine = read_activity(atlases / "same")
    other = replace(mine, settings=mine.settings | {"signals": ["act"]})
    with pytest.raises(AtlasError, match=r"made with signals=\[act, up\] and .* signals=\[act\]"):
        kinship(mine, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "has no time courses; make it again"),
        (
            {"tokens": torch.arange(100), "samples": torch.tensor([50, 50])}
            | {f"L{i}": torch.randn(100, 6) for i in range(3)},
            "is too short: 100 tokens leave 0 when .* 6 networks of a block need 60",
        ),
        (
            {f"L{i}": torch.arange(40.0).repeat(20)[:, None] for i in range(3)},
            "the tokens explain all that the networks of",
        ),
    ],
)
def test_an_atlas_that_cannot_be_compared(atlases, tmp_path, changes, message):
    edited(atlases / "same", tmp_path / "a", **changes)
    with pytest.raises(AtlasError, match=message):
        read_activity(tmp_path / "a")


def test_the_command(atlases):
    known = [f"--unrelated={atlases / f'other{seed}'}" for seed in (2, 3, 4)]
    asked = [str(atlases / name) for name in ("same", "reordered", "other5")]
    done = CliRunner().invoke(cli.app, ["lineage", *asked, *known])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith(asked[1]) and lines[1].endswith("stems from the same model")
    assert lines[2].startswith(asked[2]) and not lines[2].endswith("same model")
    assert "by 3 unrelated models given here" in lines[3]
    done = CliRunner().invoke(cli.app, ["lineage", *asked, *known, "--json"])
    found = json.loads(done.stdout)
    references = [reference["similarity"] for reference in found["unrelated"]]
    assert references == [similarity(atlases, f"other{seed}") for seed in (2, 3, 4)]
    for entry, name in zip(found["others"], ("reordered", "other5"), strict=True):
        assert entry["similarity"] == similarity(atlases, name)
        assert entry["false_alarms"] == false_alarms(entry["similarity"], references)


def test_the_same_unrelated_model_thrice_is_one(atlases):
    known = [f"--unrelated={atlases / 'other2'}"] * 3
    asked = [str(atlases / name) for name in ("same", "reordered")]
    done = CliRunner().invoke(cli.app, ["lineage", *asked, *known])
    assert isinstance(done.exception, AtlasError)
    assert "takes 3 unrelated models or more and there are 1" in str(done.exception)


def test_without_unrelated_models_measured_pairs_stand_in(atlases):
    asked = [str(atlases / name) for name in ("same", "reordered")]
    done = CliRunner().invoke(cli.app, ["lineage", *asked])
    assert done.exit_code == 0, done.output
    assert f"by {len(MEASURED)} unrelated pairs of small models" in done.stdout
    assert "stems from the same model" in done.stdout
