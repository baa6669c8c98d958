"""What a run borrows is given back, when it ends well and when it fails anywhere."""

import random

import numpy as np
import pytest
import torch
from llmcompressor.core import active_session
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from transformers import default_data_collator

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor import width_pruning
from funcnet_plugin.measure import halving
from funcnet_plugin.peers import depth
from tests.hosting import recipe, run
from tests.hosts.llmcompressor.test_quantization import w4a16
from tests.peers.test_whole_model_peers import peer

pytestmark = pytest.mark.usefixtures("forget_the_session")

N = 12
ROWS = torch.randint(3, 32, (N, 16), generator=torch.Generator().manual_seed(3))
EFFECT = recipe("WidthPruningModifier", scorer="effect", repair="least_squares")
TAYLOR = recipe("WidthPruningModifier", scorer="taylor")


def rows():
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ROWS]


def shuffled(collate=default_data_collator, **options):
    options = options or {"shuffle": True}
    return DataLoader(rows(), collate_fn=collate, **options)


def failing_after(n):
    """A collator that gives up at batch `n` of a run, in whatever pass that is."""
    seen = []

    def collate(batch):
        seen.append(batch)
        if len(seen) > n:
            raise OSError("the disk is gone")
        return default_data_collator(batch)

    return collate


def orders(loader, epochs=5):
    return [tuple(tuple(b["input_ids"][0].tolist()) for b in loader) for _ in range(epochs)]


def hooks(model):
    return {
        name: [len(found) for key, found in vars(module).items() if "_hooks" in key]
        for name, module in model.named_modules()
    }


def break_finalize(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no more")

    monkeypatch.setattr(width_pruning, "describe_widths", fail)


def break_pass(module):
    """Let a pass of ours over the text fail at its fourth batch."""

    def prepare(monkeypatch):
        inputs = module.model_inputs

        def failing(*args):
            for n, batch in enumerate(inputs(*args)):
                if n == 3:
                    raise OSError("the disk is gone")
                yield batch

        monkeypatch.setattr(module, "model_inputs", failing)

    return prepare


# The loader is read by us, for one batch and then whole by the host, and again for what follows.
ENDS = {
    "well": (EFFECT, N * 100, None),
    "well, the whole model read": (TAYLOR, N * 100, None),
    "well, layers dropped": (peer("DepthPruningModifier", pruning_ratio=0.3), N * 100, None),
    "in initialize": (recipe(then=w4a16(), pruning_ratio=0.42, ratio_scope="mlp"), N * 100, None),
    "in initialize, reading": (EFFECT, 3, None),
    "in initialize, over gradients": (TAYLOR, N * 100, break_pass(halving)),
    "in initialize, over layers": (peer("DepthPruningModifier"), N * 100, break_pass(depth)),
    "in the pipeline": (EFFECT, N + 5, None),
    "in the pipeline after a pass of ours": (TAYLOR, N + 5, None),
    "in what follows": (
        recipe("WidthPruningModifier", then=w4a16(), scorer="effect", align=8), 2 * N + 5, None
    ),
    "in finalize": (EFFECT, N * 100, break_finalize),
}  # fmt: skip


def end(case, monkeypatch, model, texts, loader=shuffled, **options):
    """Run to the end that a case says."""
    text, n, prepare = ENDS[case]
    if prepare is not None:
        prepare(monkeypatch)
    data = loader(failing_after(n), **options)
    if case.startswith("well"):
        run(model, texts, text, dataset=data)
    else:
        with pytest.raises((OSError, RecipeError)):
            run(model, texts, text, dataset=data)
    data.collate_fn = default_data_collator
    return data


@pytest.mark.parametrize("case", ENDS)
def test_a_shuffled_loader_draws_on_and_keeps_its_sampler(fresh, texts, monkeypatch, case):
    kept = []

    def watched(collate):
        loader = shuffled(collate)
        kept.append(loader.batch_sampler.sampler)
        return loader

    loader = end(case, monkeypatch, fresh(), texts, watched)
    assert loader.batch_sampler.sampler is kept[0]
    assert len(set(orders(loader))) == 5


@pytest.mark.parametrize("case", ENDS)
def test_hooks_and_modes_are_as_they_were(fresh, texts, monkeypatch, case):
    model = fresh().train()
    model.model.layers[1].mlp.eval()
    before, names = hooks(model), [n for n, _ in model.named_modules()]
    modes = {id(module): module.training for module in model.modules()}
    end(case, monkeypatch, model, texts)
    if case in ("in what follows",):  # the host's own hooks stay when it fails
        ours = [
            hook
            for module in model.modules()
            for key, found in vars(module).items()
            if "_hooks" in key
            for hook in found.values()
            if "funcnet_plugin" in getattr(hook, "__module__", "")
        ]
        assert not ours
    elif names == [n for n, _ in model.named_modules()]:
        assert hooks(model) == before
    assert all(modes.get(id(m), m.training) == m.training for m in model.modules())


@pytest.mark.parametrize("case", ENDS)
def test_random_numbers_go_on_as_if_nothing_had_happened(fresh, texts, monkeypatch, case):
    model, generator = fresh(), torch.Generator().manual_seed(7)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    state = generator.get_state()
    end(case, monkeypatch, model, texts, shuffle=True, generator=generator)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2]) and torch.equal(generator.get_state(), state)


def test_gradients_of_the_user_stay_and_do_not_count(fresh, texts):
    clean, model = fresh(), fresh()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    model.model.norm.weight.requires_grad_(False)
    text = recipe("WidthPruningModifier", scorer="taylor", skip_last=1, pruning_ratio=0.1)
    run(clean, texts, text, dataset=shuffled())
    run(model, texts, text, dataset=shuffled())
    for one, other in zip(clean.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    whole = [model.lm_head, *model.model.layers[-1].mlp.children(), model.model.norm]
    for module in whole:
        for parameter in module.parameters():
            assert torch.equal(parameter.grad, torch.full_like(parameter, 7.0))
    assert not model.model.norm.weight.requires_grad and model.lm_head.weight.requires_grad


@pytest.mark.parametrize(
    "case", ["in initialize, over gradients", "in the pipeline after a pass of ours"]
)
def test_gradients_of_the_user_survive_a_failure(fresh, texts, monkeypatch, case):
    model = fresh()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    end(case, monkeypatch, model, texts)
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


SAMPLERS = {
    "shuffle": lambda g: {"shuffle": True},
    "shuffle with a generator": lambda g: {"shuffle": True, "generator": g},
    "subset": lambda g: {"sampler": SubsetRandomSampler(range(N))},
    "weighted": lambda g: {"sampler": WeightedRandomSampler([1.0] * N, N)},
    "batches of its own": lambda g: {
        "batch_sampler": BatchSampler(RandomSampler(ROWS, generator=g), 2, False)
    },
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_passes_of_one_run_read_the_same_order(fresh, texts, name):
    """One pass of ours, which is kept for all that are to come, and one of the host."""
    seen = []

    def collate(batch):
        seen.extend(tuple(item["input_ids"].tolist()) for item in batch)
        return default_data_collator(batch)

    loader = shuffled(collate, **SAMPLERS[name](torch.Generator().manual_seed(2)))
    run(fresh(), texts, TAYLOR, dataset=loader)
    # the host reads one batch to trace the model before its own pass
    size = loader.batch_sampler.batch_size
    first, last = seen[:N], seen[-N:]
    assert first == last and len(seen) == 2 * N + size
    loader.collate_fn = default_data_collator
    assert len(set(orders(loader))) == 5


def test_what_the_user_set_in_the_configs_stays(fresh, texts):
    model = fresh()
    model.config.use_cache = True
    model.generation_config.repetition_penalty = 1.3
    text = recipe("WidthPruningModifier", scorer="effect", own_text=0.3)
    attention = model.config._attn_implementation
    run(model, texts, text, dataset=shuffled())
    assert model.generation_config.repetition_penalty == 1.3 and model.config.use_cache
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_driven_by_hand_gives_back_too(fresh, texts, fails):
    model, loader = fresh(), shuffled(failing_after(3 if fails else N * 100))
    sampler, before = loader.batch_sampler.sampler, hooks(model)
    session = active_session()
    session.reset()
    if fails:
        with pytest.raises(OSError):
            session.initialize(model=model, recipe=TAYLOR, calib_data=loader, copy_data=False)
    else:
        recipe_text = peer("DepthPruningModifier", pruning_ratio=0.3)
        session.initialize(model=model, recipe=recipe_text, calib_data=loader, copy_data=False)
        assert loader.batch_sampler.sampler is not sampler
        session.finalize()
    assert loader.batch_sampler.sampler is sampler
    if fails:
        assert hooks(model) == before
