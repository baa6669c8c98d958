"""What runs on the GPU where there is one with room."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure.gradients import output_gradients
from funcnet_plugin.measure.passes import on_gpu
from funcnet_plugin.measure.text import Text
from tests.conftest import make_llama
from tests.hosting import loader

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device on this machine"
)


@pytest.fixture
def pretend(monkeypatch):
    """A GPU of some free memory; what the model is moved to is noted and not done."""
    moved = []

    def install(free: int):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        model = make_llama()
        monkeypatch.setattr(model, "to", moved.append)
        return model, moved

    return install


def test_a_model_that_fits_goes_there_and_comes_back(pretend):
    model, moved = pretend(10**9)
    with pytest.raises(KeyError), on_gpu(model):
        assert moved == ["cuda"]
        raise KeyError  # also then
    assert moved == ["cuda", "cpu"]


@pytest.mark.parametrize(("backward", "goes"), [(False, ["cuda"]), (True, [])])
def test_a_way_back_needs_more_room_than_a_way_forward(pretend, backward, goes):
    weights = sum(p.numel() * p.element_size() for p in make_llama().parameters())
    model, moved = pretend(int(1.3 * weights))
    with on_gpu(model, backward=backward):
        assert moved == goes


def test_a_model_without_room_that_must_be_whole_stays(pretend):
    model, moved = pretend(1000)
    with on_gpu(model, whole=True):
        assert type(model.lm_head._parameters) is dict
    assert moved == []


def test_without_cuda_nothing_moves(monkeypatch):
    model = make_llama()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(model, "to", lambda device: pytest.fail("moved"))
    with on_gpu(model):
        pass


@needs_cuda
def test_gradients_taken_on_the_gpu_are_those_of_the_cpu(texts, monkeypatch):
    model = make_llama()
    text, units = Text.read(loader(texts)), bind(model).blocks
    there = output_gradients(model, text, units, seed=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = output_gradients(model, text, units, seed=0)
    for index, found in there.items():
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, here[index], rtol=1e-3, atol=1e-8)
