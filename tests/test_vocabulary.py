"""Neurons that answer to tokens which the calibration text does not hold."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.width_pruning import WidthPruningModifier
from funcnet_plugin.pruning.compensation import Moments
from funcnet_plugin.pruning.vocabulary import strongest_answers
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


@pytest.mark.parametrize("family", FAMILIES)
def test_strongest_answers_are_those_to_single_tokens(family):
    """Against the whole model, run on every token by itself."""
    model = FAMILIES[family].build()
    block = bind(model).blocks[0]
    seen = []
    hook = block.down.register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten()))
    with torch.no_grad():
        for token in range(model.get_input_embeddings().num_embeddings):
            model(torch.tensor([[token]]))
    hook.remove()
    expected = torch.stack(seen).double().square().amax(0)
    torch.testing.assert_close(strongest_answers(model, block), expected, rtol=1e-4, atol=1e-8)
    assert not block.down._forward_pre_hooks


def test_own_activity_adds_to_squares_alone():
    h = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    moments = Moments(6)
    moments.add(h)
    extra = torch.arange(6).double()
    more = moments.with_own_activity(extra)
    torch.testing.assert_close(more.second, moments.second + torch.diag(extra))
    torch.testing.assert_close(more.variance, moments.variance + extra)
    assert torch.equal(more.mean, moments.mean) and more.count == moments.count


@pytest.fixture
def shy(texts, tmp_path):
    """Directory of a model whose first neuron answers, in all layers, to one token only, which the
    calibration text does not hold: that token's embedding has an axis of its own."""
    model = make_llama()
    held = {int(i) for batch in loader(texts) for i in batch["input_ids"].flatten()}
    token = next(i for i in range(model.config.vocab_size) if i not in held)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, -1] = 0.0
        embedding[token] = 0.0
        embedding[token, -1] = 3.0
        for block in bind(model).blocks:
            block.decoder_layer.self_attn.o_proj.weight[-1] = 0.0  # nothing else gets there
            for module in block.inputs:
                module.weight[0] = 0.0
                module.weight[0, -1] = 3.0
    model.save_pretrained(tmp_path / "shy")
    return str(tmp_path / "shy")


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
@pytest.mark.parametrize("name", ["WidthPruningModifier", "FunctionalNetworkModifier"])
def test_a_neuron_for_an_unseen_token_is_kept(shy, texts, name, allocation):
    fields = {"allocation": allocation, "align": 1, "pruning_ratio": 0.1}
    if name == "FunctionalNetworkModifier":
        fields |= {"networks_share": 0.01, "union_with": "effect"}
    with_it = run(shy, texts, recipe(name, token_share=0.01, **fields))
    without = run(shy, texts, recipe(name, **fields))

    def has_it(model):
        """The neuron's row is the only one with nothing but the last entry."""
        rows = bind(model).blocks[0].up.weight
        return bool(((rows[:, :-1] == 0).all(1) & (rows[:, -1] == 3.0)).any())

    assert has_it(with_it) and not has_it(without)


def test_only_the_first_layer_sees_unseen_tokens(fresh, texts):
    seen = []
    fields = {"scorer": "effect", "allocation": "threshold", "compensation": "least_squares"}
    text = recipe("WidthPruningModifier", **fields)
    original = WidthPruningModifier._score

    def score(self, block, statistics):
        found = original(self, block, statistics)
        seen.append((block.index, found["effect"].clone()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WidthPruningModifier, "_score", score)
        run(fresh(), texts, text)
        run(fresh(), texts, recipe("WidthPruningModifier", token_share=0.01, **fields))
    half = len(seen) // 2
    for (layer, before), (same, after) in zip(seen[:half], seen[half:], strict=True):
        assert layer == same
        assert torch.equal(before, after) == (layer > 0)
    assert (seen[half][1] >= seen[0][1]).all()


def test_a_share_that_no_scorer_looks_at_is_refused(fresh, texts):
    text = recipe("WidthPruningModifier", scorer="random", token_share=0.01)
    with pytest.raises(RecipeError, match=r"token_share is for scorers .* add one of effect, flap"):
        run(fresh(), texts, text)
