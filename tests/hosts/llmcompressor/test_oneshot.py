"""What our modifiers know of the `oneshot` that they run in, and when it has ended."""

from importlib import import_module

import pytest
from llmcompressor.core import active_session
from transformers import default_data_collator

from funcnet_plugin.hosts.llmcompressor.call import running
from funcnet_plugin.hosts.llmcompressor.oneshot import surround
from tests.hosting import recipe, run
from tests.hosts.llmcompressor.test_borrowed import shuffled

pytestmark = pytest.mark.usefixtures("forget_the_session")
TEXT = recipe("WidthPruningModifier", scorer="effect")


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_knows_where_its_model_goes(fresh, texts, tmp_path, fails):
    seen = []

    def collate(batch):
        seen.append(running())
        if fails:
            raise OSError("the disk is gone")
        return default_data_collator(batch)

    options = {"dataset": shuffled(collate), "output_dir": str(tmp_path / "out")}
    if fails:
        with pytest.raises(OSError):
            run(fresh(), texts, TEXT, **options)
    else:
        run(fresh(), texts, TEXT, **options)
    (call,) = set(seen)
    assert call.output_dir == tmp_path / "out" and call.tokenizer.vocab_size == 32
    assert running() is None


def test_a_run_that_saves_nothing_says_so(fresh, texts):
    seen = []

    def collate(batch):
        seen.append(running())
        return default_data_collator(batch)

    run(fresh(), texts, TEXT, dataset=shuffled(collate))
    assert {call.output_dir for call in seen} == {None}


def test_what_was_begun_by_hand_and_left_is_given_back_by_the_next_run(fresh, texts):
    left, loader = shuffled(), shuffled()
    sampler, other = left.batch_sampler.sampler, loader.batch_sampler.sampler
    session = active_session()
    session.reset()
    session.initialize(model=fresh(), recipe=TEXT, calib_data=left, copy_data=False)
    assert left.batch_sampler.sampler is not sampler
    run(fresh(), texts, TEXT, dataset=loader)
    assert left.batch_sampler.sampler is sampler and loader.batch_sampler.sampler is other


def test_it_is_surrounded_once():
    entry = import_module("llmcompressor.entrypoints.oneshot")
    names = ("__init__", "__call__", "apply_recipe_modifiers")
    before = [getattr(entry.Oneshot, name) for name in names]
    surround(entry)
    assert [getattr(entry.Oneshot, name) for name in names] == before
    assert not any(hasattr(method.__wrapped__, "__wrapped__") for method in before)
