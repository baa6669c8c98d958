"""What a repair gives is looked at before a unit gets it."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.repair.checks import checked_repair
from funcnet_plugin.repair.repair import Cut, Repair, Repaired
from tests.conftest import make_llama


class Mine(Repair):
    name = "mine"


class AddsBias(Repair):
    name = "mine"
    adds_bias = True


@pytest.fixture
def cut() -> Cut:
    """Ten of 48 neurons are kept, hidden size 24."""
    return Cut(bind(make_llama()).blocks[0], torch.arange(10), {})


@pytest.mark.parametrize(
    ("repaired", "said"),
    [
        (
            Repaired(output_weight=torch.ones(24, 48)),
            "layer 0: the repair mine gave an output_weight of shape (24, 48) and must give "
            "(24, 10); correct it, or take another repair.",
        ),
        (
            Repaired(bias=torch.ones(10)),
            "layer 0: the repair mine gave a bias of shape (10,) and must give (24,); correct it, "
            "or take another repair.",
        ),
        (
            Repaired(bias=torch.ones(24)),
            "layer 0: the repair mine gave a bias to a projection that has none, which would be "
            "lost when the model is loaded again; its class must say so with adds_bias.",
        ),
    ],
)
def test_what_a_unit_cannot_have_is_refused(cut, repaired, said):
    with pytest.raises(RecipeError) as caught:
        checked_repair(Mine(), cut, repaired)
    assert str(caught.value) == said


def test_what_fits_is_given_back(cut):
    plain = Repaired(output_weight=torch.ones(24, 10))
    assert checked_repair(Mine(), cut, plain) is plain
    biased = Repaired(bias=torch.ones(24))
    assert checked_repair(AddsBias(), cut, biased) is biased
    cut.unit.output.bias = torch.nn.Parameter(torch.zeros(24))
    assert checked_repair(Mine(), cut, biased) is biased
