"""Passes through a model whose weights come one layer at a time give what they give in memory."""

import pytest
import torch
from compressed_tensors.offload import offload_module
from compressed_tensors.offload.cache import CPUCache, DiskCache

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.measure import offloading, passes
from funcnet_plugin.measure.dense_moments import moments_of
from funcnet_plugin.measure.gradients import output_gradients, weight_gradients
from funcnet_plugin.measure.offloading import computed_again, is_sent, sent_as_needed, waits
from funcnet_plugin.measure.passes import on_gpu
from funcnet_plugin.measure.predictions import predictions_of
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.tuning import tune
from tests.conftest import make_llama
from tests.families import FAMILIES
from tests.hosting import loader, logged

CPU = torch.device("cpu")
IDS = torch.randint(3, 30, (2, 9), generator=torch.Generator().manual_seed(1))


def on_disk(model, folder):
    """All of it, as a model that does not even fit into memory: each read is another tensor."""
    for module in model.modules():
        offload_module(module, CPU, "disk", offload_dir=str(folder))
    return model


@pytest.fixture
def sent(monkeypatch):
    """Weights that a module was sent, by the time they were asked for."""
    reads = []
    onload = CPUCache.onload

    def noted(self, offloaded):
        reads.append(offloaded)
        return onload(self, offloaded)

    monkeypatch.setattr(CPUCache, "onload", noted)
    return reads


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_every_family_are_the_same_to_the_bit(family, tmp_path):
    model = FAMILIES[family].build()
    blocks, text = bind(model).blocks, Text.read([{"input_ids": IDS}])
    of_outputs = output_gradients(model, text, blocks, seed=3)
    of_weights = weight_gradients(model, text, blocks)
    on_disk(model, tmp_path)
    assert is_sent(blocks[0].decoder_layer)
    again = output_gradients(model, text, blocks, seed=3)
    assert all(torch.equal(again[i], of_outputs[i]) for i in of_outputs)
    again = weight_gradients(model, text, blocks)
    assert all(all(map(torch.equal, again[i], of_weights[i])) for i in of_weights)


def test_a_model_is_tuned_alike(tmp_path, monkeypatch):
    """In memory, where weights are sent once, and where there is no room for all of them."""
    found = []
    for folder, free in ((None, 0), (tmp_path / "once", 2**30), (tmp_path / "again", 1000)):
        monkeypatch.setattr(passes, "free_bytes", lambda device, free=free: free)
        model = make_llama()
        units = bind(model).blocks
        text = Text.of_windows(
            torch.randint(3, 30, (32, 9), generator=torch.Generator().manual_seed(2))
        )
        predicted = predictions_of(model, units, [text])
        for unit in units:
            cut(unit, torch.arange(0, 48, 2))
        if folder is not None:
            folder.mkdir()
            on_disk(model, folder)
        tuned = tune(model, units, predicted, epochs=1, seed=0)
        assert tuned.divergence < tuned.divergence_before
        found.append([weight for unit in units for weight in unit.weights])
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_moments_are_the_same_to_the_bit(texts, tmp_path):
    model, text = make_llama(), Text.read(loader(texts))
    blocks = bind(model).blocks
    expected = moments_of(model, blocks, text, blocks[1:])
    found = moments_of(on_disk(model, tmp_path), blocks, text, blocks[1:])
    assert sorted(found) == [1, 2]
    assert all(torch.equal(found[i].second, expected[i].second) for i in found)


def test_a_backward_pass_holds_the_insides_of_no_layer():
    model = make_llama()

    def kept() -> int:
        sizes = []
        pack = lambda t: sizes.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(IDS, use_cache=False).logits.sum().backward()
        return sum(sizes)

    plain = kept()
    with computed_again(model, model.model.layers[0]):
        again = kept()
    assert again < plain / 3
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_a_model_is_as_it_was_after_its_weights_were_sent(sent):
    model = make_llama()
    layer = model.model.layers[0]
    layer.forward = own = layer.forward
    before = dict(model.named_parameters())
    expected = model(IDS).logits
    with pytest.raises(KeyError), sent_as_needed(model, CPU):
        assert torch.equal(model(IDS).logits, expected)
        raise KeyError  # also then
    assert len(sent) >= len(before)
    assert all(model.get_parameter(name) is weight for name, weight in before.items())
    assert layer.forward is own and "forward" not in vars(model.model.layers[1])
    assert type(model.lm_head._parameters) is dict


def test_a_model_that_is_offloaded_already_goes_back_to_where_it_was(tmp_path):
    model = on_disk(make_llama(), tmp_path)
    assert waits(model)
    with sent_as_needed(model, torch.device("meta")):
        assert not waits(model)
        assert offloading.device_of(model).type == "meta"
    assert waits(model) and offloading.device_of(model) == CPU


def test_a_gpu_without_room_is_sent_one_layer_after_the_other(monkeypatch):
    """With the CPU in the GPU's place."""
    model, seen = make_llama(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(passes, "free_bytes", lambda device: 1000)
    dispatch = passes.sent_as_needed
    monkeypatch.setattr(
        passes, "sent_as_needed", lambda m, device: seen.append(device.type) or dispatch(m, CPU)
    )
    with on_gpu(model):
        assert isinstance(model.lm_head._parameters, CPUCache)
    assert seen == ["cuda"] and type(model.lm_head._parameters) is dict


@pytest.mark.parametrize(("free", "reads"), [(10**9, 1), (1000, 3)], ids=["room", "none"])
def test_offloaded_weights_stay_on_a_gpu_that_has_room(tmp_path, monkeypatch, free, reads):
    """With the CPU in the GPU's place. Text is written a token at a time: a pass for each."""
    model, read = on_disk(make_llama(), tmp_path), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(passes, "free_bytes", lambda device: free)
    dispatch = passes.sent_as_needed
    monkeypatch.setattr(passes, "sent_as_needed", lambda m, device: dispatch(m, CPU))
    onload = DiskCache.onload
    monkeypatch.setattr(
        DiskCache, "onload", lambda self, weight: read.append(weight) or onload(self, weight)
    )
    with on_gpu(model):
        for _ in range(3):
            model(IDS)
    assert len(read) == reads * len(set(map(id, read)))


def test_an_offloaded_model_whose_modules_are_exchanged_is_run_on_the_cpu(tmp_path, monkeypatch):
    model = on_disk(make_llama(), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(passes, "free_bytes", lambda device: 10**9)
    with logged() as lines, on_gpu(model, whole=True):
        assert offloading.device_of(model) == CPU
    assert "load the model without offloading" in "".join(lines)


def test_moments_are_sent_each_weight_of_a_layer_once(texts, sent, monkeypatch):
    model, text = make_llama(), Text.read(loader(texts, batch_size=4))
    blocks = bind(model).blocks
    monkeypatch.setattr("funcnet_plugin.measure.states.room_for", lambda *a: _two_samples())
    with sent_as_needed(model, CPU):
        sent.clear()
        moments_of(model, blocks, text, blocks)
        of_up = [id(t) for t in sent if t.shape == (48, 24)]
    # gate and up of each layer, and once more those of the first, which shows how layers are called
    assert len(of_up) == 2 * 3 + 2


def _two_samples():
    from funcnet_plugin.measure.room import Room

    return Room(80, 0.0)
