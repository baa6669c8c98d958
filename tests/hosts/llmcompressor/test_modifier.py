"""The modifiers inside llm-compressor's real `oneshot`, on random models made on the spot."""

import json

import pytest
import torch
from llmcompressor import oneshot
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.budget import select
from funcnet_plugin.errors import FuncnetError
from tests.conftest import make_tokenizer
from tests.hosting import (
    kept_by_effect,
    kept_of,
    loader,
    logged,
    logits,
    networks,
    offload_layers,
    recipe,
    reload_without_us,
    run,
)

pytestmark = pytest.mark.usefixtures("forget_the_session")


@pytest.mark.parametrize("scorer", [networks(), [networks(), "effect"]], ids=["one", "union"])
def test_from_a_saved_directory_to_one_that_stock_transformers_loads(
    checkpoint, tmp_path, texts, scorer
):
    """The trap: llm-compressor writes the original config.json back, only when there is one."""
    out = tmp_path / "out"
    model = run(str(checkpoint), texts, recipe(scorer=scorer), output_dir=str(out))
    assert torch.equal(reload_without_us(out), logits(model))
    config = json.loads((out / "config.json").read_text())
    block = config["functional_network"]
    kept = config["intermediate_size"]
    assert block["kept_widths"] == [kept] * 3 and kept % 4 == 0 and kept < 48
    assert block["original_widths"] == [48] * 3
    assert block["parameters_after"] == model.num_parameters()
    reached = 1 - block["parameters_after"] / block["parameters_before"]
    assert block["pruning_ratio_reached"] == pytest.approx(reached)
    assert abs(reached - 0.2) <= 4 * 72 * 3 / block["parameters_before"]
    assert block["measured"]["groups"] == [2, 2, 2]
    assert block["measured"]["leftover_samples"] == [4, 4, 4]


@pytest.mark.parametrize("repair", ["none", "bias", "least_squares"])
def test_what_is_saved_is_what_was_in_memory(checkpoint, tmp_path, texts, repair):
    model = run(str(checkpoint), texts, recipe(repair=repair))
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    assert again.config.mlp_bias is (repair == "bias")
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "twice")), logits(model)
    )


def test_the_kept_neurons_do_not_depend_on_the_batch_size(fresh, texts):
    weights = []
    for batch_size in (1, 4, 20):
        model = run(fresh(), texts, batch_size=batch_size)
        weights.append([block.gate.weight for block in bind(model).blocks])
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            assert torch.equal(a, b)


def test_padding_does_not_change_what_is_kept(fresh, texts):
    """The same samples padded in batches, and one by one."""
    tokenizer = make_tokenizer()
    samples = [tokenizer(t[:n])["input_ids"] for t, n in zip(texts, range(20, 32), strict=True)]

    def collate(rows):
        return tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")

    weights = []
    for batch_size in (1, 5):
        data = DataLoader(samples, batch_size=batch_size, collate_fn=collate)
        model = run(fresh(), texts, recipe(scorer=networks(samples_per_group=4)), dataset=data)
        weights.append(bind(model).blocks[2].gate.weight)
    assert torch.equal(*weights)


def test_a_shuffled_dataset_is_drawn_by_the_recipes_seed(fresh, texts):
    from torch.utils.data import RandomSampler

    kept = []
    for global_seed, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(global_seed)
        plain = loader(texts)
        data = DataLoader(
            plain.dataset, sampler=RandomSampler(plain.dataset), collate_fn=plain.collate_fn
        )
        model = fresh()
        torch.manual_seed(global_seed)
        run(model, texts, recipe(seed=seed, scorer=networks(aggregate="max")), dataset=data)
        kept.append(bind(model).blocks[0].gate.weight)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_each_layer_is_measured_on_the_model_already_pruned(fresh, texts):
    """Least squares of layer 1 must see the inner activations that follow the cut layer 0."""
    model = run(fresh(), texts, recipe(repair={"name": "least_squares", "ridge": 1e-9}))
    reference, blocks = fresh(), None
    blocks = bind(reference).blocks
    # Prune the reference by hand, layer by layer, with the neurons that the run kept.
    inputs = torch.cat([batch["input_ids"] for batch in loader(texts)])
    for block, done in zip(blocks, bind(model).blocks, strict=True):
        kept = [int((block.gate.weight == row).all(1).nonzero()) for row in done.gate.weight]
        hidden = []
        handle = block.down.register_forward_pre_hook(lambda m, a, h=hidden: h.append(a[0]))
        with torch.no_grad():
            reference(inputs)
        handle.remove()
        h = hidden[0].flatten(0, 1).double()
        expected = torch.linalg.lstsq(h[:, kept], h @ block.down.weight.double().T).solution.T
        assert torch.allclose(done.down.weight.double(), expected, atol=2e-3)
        for name in ("gate", "up", "down"):
            old, new = getattr(block, name), getattr(done, name)
            old.weight = torch.nn.Parameter(new.weight.detach().clone())


def test_every_scorer_of_the_base_modifier(fresh, texts):
    kept = {}
    for scorer in ("effect", "magnitude", "random"):
        model = run(fresh(), texts, recipe("WidthPruningModifier", scorer=scorer))
        kept[scorer] = bind(model).blocks[0].gate.weight
    block = bind(fresh()).blocks[0]
    norm = sum((w**2).sum(d) for w, d in (
        (block.gate.weight, 1), (block.up.weight, 1), (block.down.weight, 0))
    )  # fmt: skip
    assert torch.equal(kept["magnitude"], block.gate.weight[select(norm, len(kept["magnitude"]))])
    assert not torch.equal(kept["effect"], kept["random"])


def test_nilearns_canica_can_be_chosen(fresh, texts):
    model = run(
        fresh(), texts, recipe(scorer=networks(decomposer={"name": "nilearn", "n_init": 2}))
    )
    assert set(bind(model).widths) == {model.config.intermediate_size} != {48}


@pytest.mark.parametrize("repair", ["least_squares", "distillation"])
@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_an_offloaded_model_is_pruned_like_one_in_memory(fresh, texts, tmp_path, device, repair):
    expected = run(fresh(), texts, recipe(repair=repair))
    model = fresh()
    options = {"offload_dir": str(tmp_path / "cache")} if device == "disk" else {}
    (tmp_path / "cache").mkdir()
    offload_layers(model, device, **options)
    run(model, texts, recipe(repair=repair))
    assert torch.equal(logits(model), logits(expected))
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(expected))


def test_threshold_allocation_cuts_all_layers_at_once(fresh, texts, tmp_path):
    model = run(
        fresh(), texts, recipe(allocation="threshold", align=1, scorer=[networks(), "effect"])
    )
    widths = bind(model).widths
    assert len(set(widths)) > 1
    before = fresh().num_parameters()
    assert model.num_parameters() == pytest.approx(0.8 * before, abs=72)


def test_progress_and_non_convergence_are_visible(fresh, texts):
    with logged() as lines:
        run(fresh(), texts, recipe(scorer=networks(canica={"max_iter": 1})))
    text = "".join(lines)
    assert (
        "layer 2: 2 of 2 ICA runs did not reach the tolerance in max_iter iterations (worst" in text
    )
    assert "layer 0: kept" in text


BAD = {
    "ratio above the reachable maximum": (recipe(pruning_ratio=0.9), "at most"),
    "ratio outside (0, 1)": (recipe(pruning_ratio=1.2), "between 0 and 1"),
    "more components than neurons": (
        recipe(scorer=networks(n_components=96)),
        "n_components=96 needs more than 96",
    ),
    "more components than tokens": (
        recipe(scorer=networks(n_components=60, samples_per_group=1)),
        "n_components=60 does not fit signals of 40 tokens x 96 neurons",
    ),
    "too few samples for one group": (recipe(scorer=networks(samples_per_group=50)), "data has 20"),
    "nothing left to prune": (recipe(skip_first=3), "none of the 3 layers"),
    "a signal twice": (recipe(scorer=networks(signals=["act", "act"])), "one signal twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_leave_the_model_alone(fresh, case, texts):
    text, message = BAD[case]
    model = fresh()
    before = logits(model)
    with pytest.raises(FuncnetError, match=message) as error:
        run(model, texts, text)
    assert "\n" not in str(error.value)
    assert torch.equal(logits(model), before)
    assert model.config.intermediate_size == 48


def test_bias_is_refused_where_it_would_be_dropped_on_reload(texts, tmp_path):
    MistralForCausalLM(MistralConfig(
        vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(FuncnetError, match="bias cannot be saved for mistral"):
        run(str(tmp_path), texts, recipe(repair="bias"))


def test_no_data_is_refused(checkpoint):
    with pytest.raises(FuncnetError, match="needs calibration data"):
        oneshot(model=str(checkpoint), recipe=recipe())


def test_the_datafree_pipeline_ends_in_an_error_not_in_silence(fresh, texts):
    model = fresh()
    with pytest.raises(FuncnetError, match="no calibration sample reached layer 0"):
        run(model, texts, pipeline="datafree")
    assert model.config.intermediate_size == 48


def test_the_basic_pipeline_measures_all_layers_on_the_dense_model(fresh, texts, tmp_path):
    """The sequential one measures later layers on what the pruned ones give."""
    text = recipe("WidthPruningModifier", scorer="effect", pruning_ratio=0.4)
    basic = run(fresh(), texts, text, pipeline="basic")
    expected = kept_by_effect(fresh(), loader(texts), basic.config.intermediate_size)
    assert kept_of(basic, tmp_path / "basic") == expected
    sequential = kept_of(run(fresh(), texts, text), tmp_path / "sequential")
    assert sequential[0] == expected[0] and sequential[2] != expected[2]


def test_a_second_run_on_the_same_model_prunes_what_the_first_left(fresh, texts, tmp_path):
    text = recipe("WidthPruningModifier", scorer="effect", pruning_ratio=0.2)
    model = run(fresh(), texts, text, pipeline="basic")
    first = model.config.intermediate_size
    rows = [block.up.weight.detach().clone() for block in bind(model).blocks]
    width = run(fresh(), texts, recipe("WidthPruningModifier", pruning_ratio=0.36)).config
    assert width.intermediate_size < first  # 0.2 of what 0.2 left
    expected = kept_by_effect(model, loader(texts), width.intermediate_size)
    run(model, texts, text, pipeline="basic")
    for block, before, keep in zip(bind(model).blocks, rows, expected, strict=True):
        assert torch.equal(block.up.weight, before[keep])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
