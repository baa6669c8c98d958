"""What the pipeline computes must be what the model computes."""

import pytest
import torch
from llmcompressor.args.dataset_arguments import DatasetArguments
from llmcompressor.pipelines.sequential import pipeline
from llmcompressor.utils.helpers import calibration_forward_context, use_eager_attention
from llmcompressor.utils.pytorch.module import infer_sequential_targets
from torch import nn
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.hosts.llmcompressor.tracing import check_trace, trust_no_trace
from funcnet_plugin.measure.recorder import Recorder
from funcnet_plugin.text.windows import make_loader
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import recipe, run

ROWS = [
    torch.randint(3, 32, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 31, 12, 25)
]


def batches(side: str, size: int) -> list[dict[str, torch.Tensor]]:
    """The four texts, padded on one side or cut to one length, `size` at a time."""
    length = max(map(len, ROWS)) if side != "none" else min(map(len, ROWS))
    ids = torch.zeros(len(ROWS), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(ROWS):
        row = row[:length]
        where = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    return [
        {"input_ids": i, "attention_mask": m}
        for i, m in zip(ids.split(size), mask.split(size), strict=True)
    ]


def trace(model, batch):
    trust_no_trace()
    settings = DatasetArguments()
    targets = infer_sequential_targets(model, None)
    return pipeline.trace_subgraphs(model, batch, targets, settings.tracing_ignore, 1)


def recorded(model, given):
    """Layer -> what the recorder delivers in the pipeline's pass, joined over samples."""
    samples = {block.index: [] for block in bind(model).blocks}
    handles = []

    def register(module, hook, kind, **options):
        handles.append(getattr(module, f"register_{kind}_hook")(hook, **options))
        return handles[-1]

    subgraphs = trace(model, given[0])
    for block in bind(model).blocks:
        Recorder(block, register, samples[block.index].append)
    with calibration_forward_context(model):
        for batch in given:
            values = dict(batch)
            for subgraph in subgraphs:
                needed = {name: values[name] for name in subgraph.input_names}
                values |= subgraph.forward(model, **needed)
    for handle in handles:
        handle.remove()
    return {i: torch.cat([sample.inner for sample in found]) for i, found in samples.items()}


@torch.no_grad()
def computed(model, given):
    """Layer -> what enters the down projection in the model's own pass, padding removed."""
    found = {block.index: [] for block in bind(model).blocks}
    hooks = [
        block.down.register_forward_pre_hook(
            lambda module, args, i=block.index: found[i].append(args[0].flatten(0, -2))
        )
        for block in bind(model).blocks
    ]
    # the pipeline's kind of attention: Gemma 2 has another formula with each
    with use_eager_attention(model):
        for batch in given:
            model(**batch)
    for hook in hooks:
        hook.remove()
    real = torch.cat([batch["attention_mask"].bool().flatten() for batch in given])
    return {i: torch.cat(parts)[real] for i, parts in found.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recorder_sees_what_the_model_computes(name):
    model = FAMILIES[name].build()
    for side in ("none", "left", "right"):
        for size in (1, 4):
            given = batches(side, size)
            theirs, ours = computed(model, given), recorded(model, given)
            for layer, expected in theirs.items():
                assert len(expected) == sum(int(b["attention_mask"].sum()) for b in given)
                torch.testing.assert_close(ours[layer], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 8])
def test_a_mask_function_that_is_chosen_by_an_expression_stays_in_the_trace(window):
    """Mistral's way; the same weights as LLaMA must give the same, sliding windows their own."""
    model = FAMILIES["mistral"].build()
    model.config.sliding_window = window
    given = batches("left", 4)
    found, expected = recorded(model, given), computed(model, given)
    for layer in expected:
        torch.testing.assert_close(found[layer], expected[layer], atol=1e-4, rtol=1e-4)
    if window is not None:
        model.config.sliding_window = None
        assert not torch.allclose(computed(model, given)[2], expected[2], atol=1e-2)


def test_what_was_replaced_for_the_trace_is_put_back():
    from transformers.masking_utils import create_causal_mask
    from transformers.models.mistral import modeling_mistral

    model = FAMILIES["mistral"].build()
    trace(model, batches("none", 1)[0])
    assert modeling_mistral.create_causal_mask is create_causal_mask


class _Wrong:
    """A traced pass that forgets a layer's attention mask."""

    input_names = ("input_ids",)

    def forward(self, model, input_ids):
        hidden = model.model.embed_tokens(input_ids)
        positions = torch.arange(input_ids.shape[1])[None]
        rotary = model.model.rotary_emb(hidden, positions)
        for layer in model.model.layers:
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
        return {"hidden": hidden}


def test_a_trace_that_computes_something_else_is_refused():
    model = make_llama(attn_implementation="eager")
    layers = {f"model.layers.{i}": layer for i, layer in enumerate(model.model.layers)}
    with pytest.raises(CalibrationError, match=r"model.layers.0 gives is .* away"):
        check_trace(model, layers, [_Wrong()], batches("none", 4)[0])


@pytest.fixture
def saved(tmp_path, forget_the_session):
    """Saves a tiny model of a family, as users have them."""

    def save(name: str) -> nn.Module:
        FAMILIES[name].build().save_pretrained(tmp_path)
        return AutoModelForCausalLM.from_pretrained(tmp_path)

    return save


def test_a_run_on_a_wrong_trace_stops_before_anything_is_cut(saved, monkeypatch):
    """The mechanism of the fault: the next host version, or family, may lose something else."""
    from funcnet_plugin.hosts.llmcompressor import tracing

    monkeypatch.setattr(tracing, "_as_step", lambda function: function)  # nothing is mended
    model = saved("mistral")
    before = [p.clone() for p in model.parameters()]
    text = recipe("WidthPruningModifier", scorer="effect")
    loader = make_loader([row[:12].tolist() for row in ROWS])
    with pytest.raises(CalibrationError, match="traced pass is not that of MistralForCausalLM"):
        run(model, None, text, dataset=loader)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_follows_pruning_is_traced_faithfully_too(saved, monkeypatch):
    """GPTQ after pruning reads a trace of its own."""
    checked = []
    from funcnet_plugin.hosts.llmcompressor import tracing

    check = tracing.check_trace

    def counted(model: nn.Module, *args):
        checked.append(type(model).__name__)
        check(model, *args)

    monkeypatch.setattr(tracing, "check_trace", counted)
    gptq = {"GPTQModifier": {"targets": "Linear", "scheme": "W8A8", "ignore": ["lm_head"]}}
    text = recipe("WidthPruningModifier", scorer="effect", then=gptq, align=8)
    loader = make_loader([row[:12].tolist() for row in ROWS])
    run(saved("phi3"), None, text, dataset=loader)
    assert checked == ["Phi3ForCausalLM"] * 2
