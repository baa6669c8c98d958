"""One contract, kept by every built-in adapter, on tiny random models made on the spot."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import BLOCK_KEY, set_widths
from funcnet_plugin.cut import surgery
from funcnet_plugin.cut.activity import apply_mask
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.repair.repair import Cut
from tests.conftest import make_tokenizer
from tests.families import FAMILIES, WIDTH
from tests.hosting import IDS, loader, logits, networks, recipe, run
from tests.hosts.llmcompressor.test_quantization import W8A8

KEEP = (  # of the three layers: different widths, no layer whole
    torch.arange(0, WIDTH, 2),
    torch.tensor([i for i in range(WIDTH) if i % 6]),
    torch.arange(5, WIDTH - 7),
)

pytestmark = [
    pytest.mark.usefixtures("forget_the_session"),
    pytest.mark.parametrize("name", FAMILIES),
]


@pytest.fixture
def family(name):
    return FAMILIES[name]


def reload(model, path):
    model.save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


def cut_differently(model) -> None:
    """Per-layer widths, config included."""
    layout = bind(model)
    for block, keep in zip(layout.blocks, KEEP, strict=True):
        surgery.cut(block, keep)
    set_widths(model.config, layout.adapter.width_key, layout.widths)
    setattr(model.config, BLOCK_KEY, {"kept_widths": layout.widths})


def test_masking_neurons_equals_cutting_them(family):
    masked, cut = family.build(torch.float64), family.build(torch.float64)
    for block, keep in zip(bind(masked).blocks, KEEP, strict=True):
        apply_mask(block, keep.tolist())
    dense = logits(family.build(torch.float64))
    cut_differently(cut)
    torch.testing.assert_close(logits(cut), logits(masked), atol=1e-10, rtol=0)
    assert (logits(cut) - dense).abs().max() > 1e-3


def test_from_oneshot_to_stock_transformers(family, texts, tmp_path):
    family.build().save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    text = recipe(scorer=[networks(), "effect"], repair="least_squares", align=8, pruning_ratio=0.1)
    model = run(str(tmp_path / "dense"), texts, text, output_dir=str(tmp_path / "out"))
    layout = bind(model)
    (width,) = set(layout.widths)
    assert width < WIDTH and getattr(model.config, layout.adapter.width_key) == width
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))


def test_per_layer_widths_are_saved_and_loaded_and_generate(family, tmp_path):
    model = family.build()
    cut_differently(model)
    again = reload(model, tmp_path).eval()
    assert bind(again).widths == [len(keep) for keep in KEEP]
    assert torch.equal(logits(again), logits(model))
    both = [
        again.generate(IDS[:1, :8], max_new_tokens=6, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*both)


def test_padding_undoes_per_layer_widths(family):
    model = family.build(torch.float64)
    cut_differently(model)
    expected = logits(model)
    for block in bind(model).blocks:
        surgery.pad_with_zeros(block, WIDTH)
    torch.testing.assert_close(logits(model), expected, atol=1e-10, rtol=0)


def test_bias_is_saved_or_refused(family, texts, tmp_path):
    path = str(tmp_path / "dense")
    family.build().save_pretrained(path)
    text = recipe(repair="bias", align=8, pruning_ratio=0.1)
    if not family.bias:
        with pytest.raises(FuncnetError, match="bias cannot be saved"):
            run(path, texts, text)
        return
    model = run(path, texts, text, output_dir=str(tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    assert all(block.down.bias.abs().max() > 0 for block in bind(again).blocks)


def test_least_squares_comes_closer_than_the_plain_cut(family, texts):
    """Measured on what it was fitted to, layer 1 alone."""
    dense = family.build()
    (block,) = (b for b in bind(dense).blocks if b.index == 1)
    hidden = []
    handle = block.down.register_forward_pre_hook(lambda m, a: hidden.append(a[0].flatten(0, -2)))
    for batch in loader(texts, samples=8):
        dense(**batch)
    handle.remove()
    h = torch.cat(hidden).detach()
    moments = Moments(WIDTH)
    moments.add(h)
    errors = {}
    for repair in ("none", {"name": "least_squares", "ridge": 1e-3}):
        part = REPAIRS.make(repair)
        (cut,) = (b for b in bind(family.build()).blocks if b.index == 1)
        repaired = part.repaired(Cut(cut, KEEP[0], {"moments": moments}))
        surgery.cut(cut, KEEP[0], repaired.output_weight)
        difference = cut.down(h[:, KEEP[0]]) - block.down(h)
        errors[part.name] = float(difference.detach().square().mean())
    assert errors["least_squares"] < 0.9 * errors["none"]


def test_quantization_follows_in_the_same_recipe(family, texts, tmp_path):
    if not family.gptq:
        pytest.skip("llm-compressor's GPTQ does not save this family faithfully, pruned or not")
    path = str(tmp_path / "dense")
    family.build().save_pretrained(path)
    text = recipe(then=W8A8, align=8, pruning_ratio=0.1)
    model = run(path, texts, text, output_dir=str(tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert bind(again).widths == bind(model).widths < [WIDTH] * 3
    torch.testing.assert_close(logits(again), logits(model), atol=1e-3, rtol=1e-3)


def test_gradients_flow_after_pruning(family):
    model = family.build()
    cut_differently(model)
    model(IDS, labels=IDS).loss.backward()
    for block in bind(model).blocks:
        for module in block.projections:
            assert module.weight.grad is not None and module.weight.grad.abs().max() > 0


def test_inspect_needs_the_config_only(family, name, tmp_path):
    model = family.build()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    shape = inspect_model(tmp_path, (0.1,), align=8)
    assert shape.adapter == name and shape.widths == [WIDTH] * 3
    assert shape.parameters == model.num_parameters()
    (reach,) = shape.reaches
    removed = sum(
        (WIDTH - reach.kept_width) * block.parameters_per_piece for block in bind(model).blocks
    )
    assert reach.parameters == shape.parameters - removed
