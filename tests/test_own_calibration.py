"""A share of the calibration that the model writes itself."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.own_calibration import inner_moments, own_batches
from funcnet_plugin.pruning.compensation import least_squares_repair
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, logits, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")
FIELDS = {
    "scorer": "surgeon",
    "fisher_labels": "model",
    "allocation": "threshold",
    "compensation": "least_squares",
    "align": 8,
}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_windows_are_as_many_and_as_long_as_the_share_asks(texts, share):
    model = make_llama()
    batches = list(own_batches(model, loader(texts, samples=12, window=30), share, 0, None))
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert ids.shape == (round(12 * share / (1 - share)), 30)
    assert not {0, 1, 2} & set(ids.flatten().tolist())  # padding, begin, end
    again = own_batches(model, loader(texts, samples=12, window=30), share, 0, None)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in again]), ids)


def test_padding_does_not_make_windows_longer(texts):
    padded = [
        {key: torch.cat([value, torch.zeros_like(value)], 1) for key, value in batch.items()}
        for batch in loader(texts, samples=4, window=20)
    ]
    (batch,) = own_batches(make_llama(), padded, 0.5, 0, None)
    assert batch["input_ids"].shape == (4, 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_inner_moments_are_of_what_enters_the_down_projection(family, texts):
    model = FAMILIES[family].build()
    ids = torch.randint(3, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(2)
    ]
    block = bind(model).blocks[-1]
    seen = []
    hook = block.down.register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2)))
    with torch.no_grad():
        model(ids)
    hook.remove()
    h = torch.cat(seen).double()
    found = inner_moments(model, batches, [block])[block.index]
    torch.testing.assert_close(found.second, h.T @ h / 27, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.mean, h.mean(0), rtol=1e-4, atol=1e-7)
    assert found.count == 27 and not block.down._forward_pre_hooks


def test_the_repair_fits_both_texts(fresh, texts):
    """The down projection of every layer is the one that least squares gives on the calibration
    windows and the written ones together."""
    text = recipe("WidthPruningModifier", own_text=0.5, **FIELDS)
    dense, pruned = fresh(), run(fresh(), texts, text)
    together = [*loader(texts), *own_batches(dense, loader(texts), 0.5, 0, None)]
    moments = inner_moments(dense, together, bind(dense).blocks)
    for before, after in zip(bind(dense).blocks, bind(pruned).blocks, strict=True):
        rows = [
            next(i for i, old in enumerate(before.up.weight) if torch.equal(old, row))
            for row in after.up.weight
        ]
        second = moments[before.index].second
        expected = least_squares_repair(before.down.weight, second, torch.tensor(rows), 0.02)
        torch.testing.assert_close(
            after.down.weight.double(), expected, rtol=1e-3, atol=1e-4, check_dtype=False
        )
    assert pruned.config.functional_network["settings"]["own_text"] == 0.5


@pytest.mark.parametrize("name", ["WidthPruningModifier", "FunctionalNetworkModifier"])
@pytest.mark.parametrize("family", ["llama", "chatglm", "gpt2", "opt"])
def test_every_layout_writes(texts, tmp_path, family, name):
    FAMILIES[family].build().save_pretrained(tmp_path / "dense")
    fields = {key: value for key, value in FIELDS.items() if key != "scorer"}
    if name == "WidthPruningModifier":
        fields["scorer"] = "surgeon"
    else:
        fields |= {"strategy": "global", "union_with": "surgeon", "networks_share": 0.1}
    text = recipe(name, own_text=0.5, pruning_ratio=0.1, **fields)
    model = run(str(tmp_path / "dense"), texts, text)
    without = run(str(tmp_path / "dense"), texts, text.replace("own_text: 0.5", "own_text: 0.0"))
    assert torch.isfinite(logits(model)).all()
    assert not torch.equal(logits(model), logits(without))


def test_layers_measured_one_after_another_are_refused(fresh, texts):
    text = recipe("WidthPruningModifier", scorer="effect", own_text=0.5)
    with pytest.raises(RecipeError, match=r"own_text is measured on the dense model.*threshold"):
        run(fresh(), texts, text)
