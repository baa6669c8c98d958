"""Atlases of other signals than activated gate and up projection, against hooks by hand."""

import json
import types

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from funcnet_plugin import cli
from funcnet_plugin.adapters import bind
from funcnet_plugin.atlas import read_atlas, write_atlas
from funcnet_plugin.atlas.matching import kept_alike, match
from funcnet_plugin.checkpoints.block import read_kept, write_kept
from funcnet_plugin.errors import AtlasError, RecipeError
from funcnet_plugin.hosts.lm_eval import FuncnetLM
from funcnet_plugin.lesioning import lesion_study
from funcnet_plugin.lesions.study import Study
from funcnet_plugin.measure.text import Text
from funcnet_plugin.report import write_report
from funcnet_plugin.score.scorer import Setting
from funcnet_plugin.survey import survey
from funcnet_plugin.survey.channels import Channels
from funcnet_plugin.survey.taps import Tap, channels_in
from funcnet_plugin.survey.wanted import Wanted
from funcnet_plugin.surveying import make_atlas
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, networks, recipe, run
from tests.surveys import PARAMETERS

LAYER = "a decoder layer has no module 'attention', as output:attention asks for; it has self_attn,"


def channel_survey(model, texts, *signals, **parameters):
    wanted = Wanted.of(
        PARAMETERS | {"decomposer": {"n_init": 2}, "signals": list(signals)} | parameters
    )
    units = bind(model).blocks
    text = Text.read(loader(texts))
    watched = wanted.there(model, units)
    return survey(model, units, text, wanted.scorer, Setting(), wanted=watched, cut=0.0)


def by_hand(model, texts, name: str) -> list[torch.Tensor]:
    """Layer -> (tokens, channels), float64."""
    tap, seen = Tap.parse(name), {}
    handles = []
    for unit in bind(model).blocks:
        module = unit.decoder_layer.get_submodule(tap.path)

        def keep(module, args, output, i=unit.index):
            output = output[0] if isinstance(output, tuple) else output
            value = args[0] if tap.side == "input" else output
            seen.setdefault(i, []).append(value.reshape(value.shape[1], -1))

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        for batch in loader(texts):
            model(**batch)
    for handle in handles:
        handle.remove()
    return [torch.cat(seen[i]).double() for i in sorted(seen)]


def standardised(x):
    return (x - x.mean(0)) / x.std(0, correction=0)


def maps_of(atlas, block: str, width: int, n_signals: int = 1) -> torch.Tensor:
    found = torch.zeros(len(atlas.blocks[block]), n_signals * width, dtype=torch.float64)
    for k, network in enumerate(atlas.blocks[block]):
        e = atlas.entries(network.name)
        found[k, width * e.signal + e.neuron] = e.z.double()
    return found


@pytest.mark.parametrize(
    ("signals", "width"),
    [
        (["input:self_attn.o_proj"], 24),  # heads
        (["output:self_attn.k_proj"], 12),
        (["output:self_attn", "output:mlp"], 24),
        (["output"], 24),
        (["input:mlp.down_proj"], 48),
    ],
)
def test_networks_are_of_what_the_modules_are_given_or_give(texts, signals, width):
    model = make_llama()
    found = channel_survey(model, texts, *signals)
    parts = [by_hand(model, texts, name) for name in signals]
    for layer in range(3):
        joined = standardised(torch.cat([part[layer] for part in parts], dim=1))
        maps = maps_of(found.atlas, f"L{layer}", width, len(signals))
        fit = torch.linalg.lstsq(maps.T, joined.T).solution.T
        courses = found.courses[f"L{layer}"].numpy()
        for k in range(len(maps)):
            assert np.corrcoef(fit[:, k].numpy(), courses[:, k])[0, 1] > 0.999
    assert found.atlas.widths == [width] * 3 and found.atlas.signals == signals
    assert not found.atlas.scores and not found.atlas.means and not found.atlas.of_neurons


def test_the_product_of_neurons_is_what_enters_the_down_projection(texts):
    model = make_llama()
    by_name = channel_survey(model, texts, "product")
    by_path = channel_survey(model, texts, "input:mlp.down_proj")
    for name in by_name.atlas.networks:
        assert torch.equal(by_name.atlas.entries(name).z, by_path.atlas.entries(name).z)
    assert by_name.atlas.of_neurons and list(by_name.atlas.scores) == [0, 1, 2]


@torch.no_grad()
@pytest.mark.parametrize("signal", ["product", "output"])
def test_words_are_what_the_logits_gain(texts, signal):
    model = make_llama()
    found = channel_survey(model, texts, signal).atlas
    tap = {"product": "input:mlp.down_proj"}.get(signal, signal)
    deviations = [x.std(0, correction=0) for x in by_hand(model, texts, tap)]
    typical = by_hand(model, texts, "output")[-1].mean(0).float()
    agree = 0
    for layer in range(3):
        maps = maps_of(found, f"L{layer}", len(deviations[layer]))
        steps = (maps * deviations[layer]).float()
        if signal == "product":
            steps = steps @ model.model.layers[layer].mlp.down_proj.weight.T
        for k, step in enumerate(steps):
            _, gain = torch.autograd.functional.jvp(
                lambda state: model.lm_head(model.model.norm(state)), typical, step
            )
            expected = {str(i) for i in gain.topk(10).indices.tolist()}
            agree += len(expected & set(found.networks[f"L{layer}.N{k}"].facts["raises"]))
    assert agree >= 0.97 * 180


def test_what_another_module_makes_of_channels_is_not_guessed(texts):
    facts = channel_survey(make_llama(), texts, "input:self_attn.o_proj").atlas.networks
    assert {(*n.facts["raises"], *n.facts["lowers"]) for n in facts.values()} == {()}


@pytest.mark.parametrize("strategy", ["windows", "global"])
def test_channels_across_layers(texts, strategy):
    found = channel_survey(
        make_llama(), texts, "output", strategy=strategy, layers_per_window=2
    ).atlas
    assert list(found.blocks) == (["ALL"] if strategy == "global" else ["L0-1", "L2"])
    entries = found.entries(f"{next(iter(found.blocks))}.N0")
    assert float(entries.z.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_padding_is_no_token():
    model = make_llama()
    unit = bind(model).blocks[1]
    channels = Channels.of(unit, [Tap.parse("output"), Tap.parse("input:mlp")], 24)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 32, (2, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    alone, padded = [], []
    with torch.no_grad():
        handles = channels.record(padded.append)
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        for handle in handles:
            handle.remove()
        channels.record(alone.append)
        model(input_ids=ids[:1, :7], use_cache=False)
    assert [len(sample.joined(["output"])) for sample in padded] == [7, 10]
    mine, other = (found[0].joined(["output", "input:mlp"]) for found in (padded, alone))
    assert mine.shape == (7, 48) and torch.allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_channels_are_counted_without_weights(family):
    model = FAMILIES[family].build().eval()
    units = bind(model).blocks
    layer = units[0].decoder_layer
    (down,) = (path for path, module in layer.named_modules() if module is units[0].output)
    for names, width in ((["output"], 32), ([f"input:{down}"], 48), ([f"output:{down}"], 32)):
        taps = list(map(Tap.parse, names))
        assert set(channels_in(model, units, taps).values()) == {width}
        on_meta = model.to("meta")
        assert set(channels_in(on_meta, bind(on_meta).blocks, taps).values()) == {width}
        model = FAMILIES[family].build().eval()
        units = bind(model).blocks


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        (["output:attention"], LAYER),
        ([], "no signals are named; write act,up"),
        (["heads"], "there is no signal 'heads'; write act, up or product for neurons"),
        (["act", "output"], "signals act, output do not go together"),
        (["output", "output"], "signals output, output do not go together"),
        (["output", "output:mlp.up_proj"], "in layer 0 output has 24, output:mlp.up_proj has 48"),
    ],
)
def test_signals_that_are_not_there_are_refused(checkpoint, texts, tmp_path, signals, message):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    with pytest.raises(RecipeError, match=message) as error:
        make_atlas(checkpoint, path, tmp_path / "atlas", samples=16, window=40,
                   parameters={"signals": signals, "n_components": 6})  # fmt: skip
    assert "\n" not in str(error.value) and not (tmp_path / "atlas").exists()


def test_a_module_that_is_not_run_once_is_refused():
    model = make_llama()
    for layer in model.model.layers:
        layer.spare = torch.nn.Linear(24, 24)
    with pytest.raises(RecipeError, match="layer 0 runs it 0 times instead of once"):
        channels_in(model, bind(model).blocks, [Tap.parse("output:spare")])


def test_what_is_no_vector_for_each_token_is_refused():
    model = FAMILIES["gemma3"].build().eval()  # its norm has heads before tokens
    with pytest.raises(RecipeError, match=r"of shape \(2, 4, 13, 8\) for 2 samples of 13 tokens"):
        channels_in(model, bind(model).blocks, [Tap.parse("output:self_attn.q_norm")])
    with pytest.raises(RecipeError, match=r"input:self_attn\.q_norm of layer 0 is of shape"):
        channels_in(model, bind(model).blocks, [Tap.parse("input:self_attn.q_norm")])


def test_a_model_that_cannot_be_run_without_weights_is_looked_at_with_them(texts):
    wanted = Wanted.of({"signals": ["output"]})
    model = make_llama()
    broken = make_llama().to("meta")
    broken.forward = types.MethodType(lambda self, **given: given["input_ids"].item(), broken)
    assert wanted.plan(broken, bind(broken, try_mlps=False).blocks) == []
    watched = wanted.there(model, bind(model).blocks)
    assert [one.width for one in watched] == [24] * 3


@pytest.fixture
def heads(texts, tmp_path):
    """An atlas of attention heads."""
    found = channel_survey(make_llama(), texts, "input:self_attn.o_proj")
    write_atlas(tmp_path / "heads", found.atlas, found.courses, found.contexts, found.connectivity)
    return tmp_path / "heads"


def test_an_atlas_of_channels_is_read_and_shown(heads, tmp_path):
    atlas = read_atlas(heads)
    assert not atlas.of_neurons and atlas.widths == [24] * 3
    write_report(heads, tmp_path / "page.html")
    assert '"pieces":"channels"' in (tmp_path / "page.html").read_text()
    found = match(atlas, atlas)
    assert found.similarity == pytest.approx(1.0, abs=1e-6)
    done = CliRunner().invoke(cli.app, ["match", str(heads), str(heads), "--json"])
    assert json.loads(done.output)["kept_alike"] is None


def test_channels_are_not_cut_or_silenced(heads, checkpoint, texts, tmp_path):
    sentence = "is of input:self_attn.o_proj, whose channels are no neurons"
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": texts[0]}) + "\n")
    with pytest.raises(AtlasError, match=sentence):
        lesion_study(checkpoint, heads, tmp_path / "out", Study(texts={"a": str(text)}))
    with pytest.raises(AtlasError, match=sentence):
        FuncnetLM(str(checkpoint), atlas=str(heads), lesion="L0.N1")
    write_kept(tmp_path, [48] * 3, [[0]] * 3)
    with pytest.raises(AtlasError, match=sentence):
        write_report(heads, tmp_path / "page.html", pruned=tmp_path)
    with pytest.raises(AtlasError, match="no layer in common"):
        kept_alike(read_atlas(heads), read_atlas(heads), 0.2)


@pytest.mark.usefixtures("forget_the_session")
def test_channels_score_no_neurons(heads, fresh, texts):
    text = recipe(scorer={"name": "atlas", "path": str(heads)})
    with pytest.raises(AtlasError, match="whose channels are no neurons"):
        run(fresh(), texts, text)


def test_atlases_of_other_signals_do_not_match(heads, texts, tmp_path):
    other = channel_survey(make_llama(), texts, "output").atlas
    with pytest.raises(AtlasError, match=r"of input:self_attn\.o_proj and the other of output;"):
        match(read_atlas(heads), other)


@pytest.mark.usefixtures("forget_the_session")
def test_pruning_by_the_product_is_pruning_by_its_atlas(fresh, texts, tmp_path):
    found = channel_survey(fresh(), texts, "product")
    write_atlas(tmp_path / "atlas", found.atlas, found.courses, found.contexts, found.connectivity)
    fields = {"pruning_ratio": 0.2, "allocation": "threshold"}
    scorer = networks({"n_init": 2}, signals=["product"])
    run(fresh(), texts, recipe(scorer=scorer, **fields), output_dir=str(tmp_path / "direct"))
    by_atlas = {"name": "atlas", "path": str(tmp_path / "atlas")}
    run(fresh(), texts, recipe(scorer=by_atlas, **fields), output_dir=str(tmp_path / "by"))
    assert read_kept(tmp_path / "direct") == read_kept(tmp_path / "by")


def test_the_command_takes_signals(checkpoint, texts, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    done = CliRunner().invoke(cli.app, [
        "atlas", str(checkpoint), "--data", str(path), "--out", str(tmp_path / "atlas"),
        "--samples", "16", "--window", "40", "--components", "6",
        "--signals", "output:self_attn.q_proj, input:self_attn.o_proj", "--json",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    atlas = read_atlas(tmp_path / "atlas")
    assert atlas.signals == ["output:self_attn.q_proj", "input:self_attn.o_proj"]
    said = json.loads(done.stdout)
    assert [n["name"] for n in said["networks"]] == list(atlas.networks)
    assert {n["cluster"] for n in said["networks"]} == set(range(said["structure"]["clusters"]))
