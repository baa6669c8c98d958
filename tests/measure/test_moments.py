"""Moments of activations: by samples in any pieces, and in passes through a whole model."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure import moments as moments_module
from funcnet_plugin.measure.dense_moments import moments_of
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.text import Text
from tests.families import FAMILIES
from tests.repair.data import TOKENS, WIDTH, correlated


def test_moments_equal_numpy_whatever_the_chunks():
    h, *_ = correlated()
    moments = Moments(WIDTH)
    for chunk in h.split([100, 1, 250, 49]):
        moments.add(chunk)
    exact = h.double()
    assert moments.count == TOKENS
    assert torch.allclose(moments.mean, exact.mean(0))
    assert torch.allclose(moments.second, exact.T @ exact / TOKENS, atol=1e-5)
    assert torch.allclose(moments.variance, exact.var(0, correction=0), rtol=1e-4)


def test_strips_up_to_the_diagonal_give_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(moments_module, "_STRIP", 5)  # the width is no multiple of it
    h, *_ = correlated()
    moments = Moments(WIDTH)
    moments.add(h[:300])
    first = moments.second.clone()  # mirrored, and then more tokens come
    moments.add(h[300:])
    exact = h.double()
    assert torch.allclose(first, exact[:300].T @ exact[:300] / 300, atol=1e-5)
    assert torch.allclose(moments.second, exact.T @ exact / TOKENS, atol=1e-5)


def test_tf32_is_allowed_where_products_are_exact_in_it(monkeypatch):
    asked = []
    real = moments_module.tf32
    monkeypatch.setattr(moments_module, "tf32", lambda allowed: asked.append(allowed) or real())
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        moments = Moments(WIDTH)
        moments.add(correlated()[0].to(dtype))
        assert moments.second.isfinite().all()
    assert asked == [True, True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_of_what_enters_the_down_projection(family):
    model = FAMILIES[family].build()
    ids = torch.randint(3, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    blocks = bind(model).blocks
    block = blocks[-1]
    seen = []
    hook = block.down.register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2)))
    with torch.no_grad():
        model(ids)
    hook.remove()
    h = torch.cat(seen).double()
    text = Text.read({"input_ids": part} for part in ids.split(2))
    found = moments_of(model, blocks, text, [block])[block.index]
    second = h.T @ h / 27
    scale = second.diagonal().sqrt()  # products are float32, so where they cancel errors do not
    assert ((found.second - second).abs() <= 1e-4 * torch.outer(scale, scale)).all()
    assert ((found.mean - h.mean(0)).abs() <= 1e-4 * scale).all()
    assert found.count == 27 and not block.down._forward_pre_hooks
