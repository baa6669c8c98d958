"""A run without a host: someone sends text through the model, and says what it has passed."""

import re
from pathlib import Path

import pytest
import torch

import funcnet_plugin
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.run import Request, Run
from funcnet_plugin.score.parts import SCORERS
from tests.conftest import make_llama
from tests.hosting import loader, networks, recipe
from tests.hosting import run as prune_with_oneshot

pytestmark = pytest.mark.usefixtures("forget_the_session")
CORE = ("adapters", "cut", "ica", "measure", "plugins", "repair", "run", "score", "text")
HOST = re.compile(r"^\s*(from|import) (llmcompressor|lm_eval|optimum|funcnet_plugin\.hosts)", re.M)
FIELDS = {"pruning_ratio": 0.2, "align": 4, "allocation": "threshold"}


def begun(model, text, scorers=("effect",), repair="least_squares", **options):
    """Begin a run and hook the model; give the run and its hooks."""
    request = Request(
        scorers=tuple(map(SCORERS.make, scorers)), repair=REPAIRS.make(repair), **FIELDS
    )
    run, hooks = Run(request, model, len(text.samples)), []
    with torch.no_grad():
        run.begin(text, **options)

    def register(module, hook, kind, **how):
        hooks.append(getattr(module, f"register_{kind}_hook")(hook, **how))

    run.record(register)
    return run, hooks


def send_through(model, text, hooks):
    """Send all of the text through the model, and take the hooks off it."""
    with torch.no_grad():
        for batch in text.batches:
            model(**batch)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("package", CORE)
def test_the_core_imports_no_host(package):
    files = list((Path(funcnet_plugin.__file__).parent / package).rglob("*.py"))
    assert files
    for file in files:
        assert not HOST.search(file.read_text()), file


@pytest.mark.parametrize(
    ("scorers", "repair"),
    [
        (["effect"], "least_squares"),
        (["surgeon"], "distillation"),
        ([networks(strategy="global"), "taylor"], "none"),
    ],
    ids=["effect", "surgeon", "networks"],
)
def test_it_prunes_as_with_a_host(fresh, texts, scorers, repair):
    text = recipe("WidthPruningModifier", **FIELDS | {"scorer": scorers, "repair": repair})
    expected = prune_with_oneshot(fresh(), texts, text).state_dict()
    model, text, cut = fresh(), Text.read(loader(texts)), []
    run, hooks = begun(model, text, scorers, repair, after_cut=lambda unit: cut.append(unit.index))
    send_through(model, text, hooks)
    run.layers_passed(list(model.modules()))
    assert run.unfinished == [0, 1, 2] and run.kept == {}  # the cut waits for all layers
    run.finish()
    assert run.unfinished == [] and cut == sorted(run.kept) != []  # one may stay whole
    assert [report["layer"] for report in run.reports] == [0, 1, 2]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_layers_that_were_not_passed_are_unfinished(texts):
    model, text = make_llama(), Text.read(loader(texts))
    run, hooks = begun(model, text)
    send_through(model, text, hooks)
    run.layers_passed(list(model.model.layers[:2].modules()))
    run.finish()
    assert run.unfinished == [0, 1, 2] and run.reports == []


def test_a_layer_that_no_sample_reached_is_named(texts):
    model, text = make_llama(), Text.read(loader(texts))
    run, hooks = begun(model, text)
    send_through(model, Text(()), hooks)
    with pytest.raises(CalibrationError, match="no calibration sample reached layer 0"):
        run.layers_passed(list(model.modules()))
