"""`strategy: global` through `oneshot`."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.atlas import Atlas
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.ica import canica
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.groups import map_scores
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Setting
from funcnet_plugin.survey import survey
from tests.hosting import loader, logits, networks, recipe, run
from tests.hosts.llmcompressor.test_quantization import W8A8

pytestmark = pytest.mark.usefixtures("forget_the_session")
GLOBAL = {"strategy": "global", "aggregate": "max"}


def dense_signals(model, texts) -> list[torch.Tensor]:
    """Per layer (tokens, 2 * width), of the dense model."""
    seen = {}
    for block in bind(model).blocks:
        for module in (block.activation, block.up):
            module.register_forward_hook(
                lambda m, a, o, key=(block.index, module): seen.setdefault(key, []).append(o[0])
            )
    with torch.no_grad():
        for batch in loader(texts):
            model(**batch)
    return [
        torch.cat([torch.cat(seen[block.index, m]) for m in (block.activation, block.up)], dim=1)
        for block in bind(model).blocks
    ]


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_a_window_is_what_all_layers_would_be_if_there_were_no_others(fresh, texts, aggregate):
    """Layers 0 and 1 together, and layer 2."""
    model = fresh()
    units, text = bind(model).blocks, Text.read(loader(texts))

    def surveyed(layers, **strategy) -> Atlas:
        scorer = SCORERS.make(networks({"n_init": 2}, aggregate=aggregate, **strategy))
        wanted = [units[i] for i in layers]
        return survey(model, units, text, scorer, Setting(), wanted=wanted).atlas

    windows = surveyed([0, 1, 2], strategy="windows", layers_per_window=2)
    assert list(windows.blocks) == ["L0-1", "L2"]
    for layers in ([0, 1], [2]):
        alone = surveyed(layers, strategy="global")
        assert alone.scores.keys() == set(layers)
        for layer, score in alone.scores.items():
            assert torch.equal(windows.scores[layer], score)
    reports = {block["name"]: block["groups"] for block in windows.facts["blocks"]}
    assert reports == {"L0-1": 2, "L2": 2}


def test_windows_through_oneshot(fresh, texts, tmp_path):
    scorer = networks(strategy="windows", layers_per_window=2)
    model = run(fresh(), texts, recipe(scorer=scorer), output_dir=str(tmp_path / "out"))
    outside = model.config.functional_network["measured"]["outside_strongest_layer"]
    assert outside[0] == outside[1] > 0.0 == outside[2]


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_the_kept_neurons_are_those_of_one_decomposition_of_all_layers(
    fresh, texts, tmp_path, allocation
):
    parts = dense_signals(fresh(), texts)
    width, tokens = parts[0].shape[1] // 2, 8 * 40
    score = torch.zeros(3, width, dtype=torch.float64)
    for group in range(2):
        rows = slice(group * tokens, (group + 1) * tokens)
        maps = canica(torch.cat([p[rows] for p in parts], dim=1), 6, tol=1e-10).maps
        for layer, part in enumerate(maps.split(2 * width, dim=-1)):
            score[layer] = torch.maximum(score[layer], map_scores(part, 2))
    text = recipe(scorer=networks({"tol": 1e-10}, **GLOBAL), allocation=allocation)
    model = run(fresh(), texts, text, output_dir=str(tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "kept_neurons.json").read_text())["kept"]
    if allocation == "uniform":
        (n,) = set(bind(model).widths)
        expected = [sorted(s.topk(n).indices.tolist()) for s in score]
        overlap = [len(set(a) & set(b)) / n for a, b in zip(kept, expected, strict=True)]
        assert min(overlap) >= 0.9  # the reduced space is truncated, so ties may turn
    else:
        assert len(set(bind(model).widths)) > 1
    block = model.config.functional_network
    assert 0.0 < block["measured"]["outside_strongest_layer"][0] < 2 / 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))


def test_union_and_quantization_follow(fresh, texts, tmp_path):
    scorer = [networks(**GLOBAL | {"aggregate": "mean"}), "effect"]
    text = recipe(then=W8A8, scorer=scorer, align=8)
    model = run(fresh(), texts, text, output_dir=str(tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scorer": networks(**GLOBAL) | {"decomposer": "nilearn"}},
            "decomposer nilearn works within layers only; take strategy: local",
        ),
        (
            {"scorer": networks(**GLOBAL), "max_memory": "1GB"},
            "max_memory bounds strategy: local",
        ),
    ],
)
def test_what_cannot_be_global_is_refused(fresh, texts, fields, message):
    with pytest.raises(RecipeError, match=message):
        run(fresh(), texts, recipe(**fields))
