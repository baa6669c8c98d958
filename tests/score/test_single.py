"""Each score of single neurons against its paper's formula, computed another way."""

import numpy as np
import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure.gradients import weight_gradients
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Evidence
from tests.conftest import make_llama
from tests.hosting import loader


def test_effect_and_flap_are_wifv(measured):
    h, W = measured.activations, measured.down
    wifv = np.array([h[:, j].var() * (W[:, j] ** 2).sum() for j in range(measured.block.width)])
    np.testing.assert_allclose(measured.score("effect"), wifv, rtol=1e-4)
    standard = (wifv - wifv.mean()) / wifv.std(ddof=1)
    np.testing.assert_allclose(measured.score("flap"), standard, rtol=1e-3, atol=1e-4)


def test_wanda_sp_is_the_mean_of_wandas_metric_over_the_outputs(measured):
    metric = np.abs(measured.down) * np.linalg.norm(measured.activations, axis=0)[None, :]
    np.testing.assert_allclose(measured.score("wanda_sp"), metric.mean(0), rtol=1e-4)


def test_taylor_is_weight_times_gradient_summed_over_the_neuron(measured, texts):
    model = make_llama()
    same = bind(model).blocks[1]
    losses = [model(**b, labels=b["input_ids"]).loss for b in loader(texts)]
    torch.stack(losses).mean().backward()
    expected = torch.zeros(same.width, dtype=torch.float64)
    for module in same.inputs:
        expected += (module.weight * module.weight.grad).abs().double().sum(1).detach()
    expected += (same.down.weight * same.down.weight.grad).abs().double().sum(0).detach()
    np.testing.assert_allclose(measured.score("taylor"), expected.numpy(), rtol=1e-3)


def test_taylor_sees_the_change_of_the_loss_that_it_predicts(texts):
    """First order: scaling a neuron's column by 1 + e changes the loss by e * sum(w dL/dw)."""
    model = make_llama().double()
    block = bind(model).blocks[1]
    batches, down = list(loader(texts, samples=4)), block.down

    gradient = weight_gradients(model, Text.read(batches), [block])[1][-1]
    weight = down.weight.detach().clone()
    predicted = (weight * gradient).sum(0)
    neuron, e = int(predicted.abs().argmax()), 0.05

    @torch.no_grad()
    def loss(factor):
        down.weight[:, neuron] = weight[:, neuron] * factor
        return sum(float(model(**b, labels=b["input_ids"]).loss) for b in batches) / 4

    slope = (loss(1 + e) - loss(1 - e)) / (2 * e)
    assert slope == pytest.approx(float(predicted[neuron]), rel=0.02)


def test_magnitude_is_the_norm_of_all_weights_of_the_neuron(measured):
    weights = [module.weight.detach().double() for module in measured.block.inputs]
    rows = torch.cat([*weights, torch.from_numpy(measured.down.T)], dim=1)
    np.testing.assert_allclose(measured.score("magnitude"), rows.norm(dim=1), rtol=1e-6)


def test_random_is_another_draw_for_every_seed_and_layer():
    blocks = bind(make_llama()).blocks

    def drawn(layer, seed):
        return SCORERS.make("random").score(Evidence(blocks[layer], seed, {}))

    assert torch.equal(drawn(0, 3), drawn(0, 3))
    assert not torch.equal(drawn(0, 3), drawn(1, 3))
    assert not torch.equal(drawn(0, 3), drawn(0, 4))
