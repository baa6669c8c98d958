"""Parts of packages and what recipes say of them: every mistake is one sentence with what there is.

On the registry of scorers; those of repairs and decomposers are the same class.
"""

import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from pydantic import Field

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.ica.decomposer import Decomposer
from funcnet_plugin.ica.parts import DECOMPOSERS
from funcnet_plugin.plugins import hookimpl, hooks
from funcnet_plugin.repair.least_squares import LeastSquares
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.repair.repair import Cut, Repair
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.score.scorer import Evidence, Scorer
from tests.conftest import make_llama
from tests.hosting import recipe, run
from tests.parts import Early, module_with

NAMES = (
    "effect, flap, wanda_sp, taylor, magnitude, random, obs, loss_effect, surgeon, networks, atlas"
)


class Steep(Early):
    """Has a parameter of its own."""

    name = "steep"
    slope: float = Field(default=1.0, gt=0.0)


class Undeclared(Scorer):
    """Reads what it does not declare."""

    name = "undeclared"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    def score(self, evidence):
        return evidence.output_gradients.diagonal()


@pytest.fixture
def install(monkeypatch):
    """Installs packages that bring parts, forgotten afterwards: name of the package -> module."""

    def installed(registry=SCORERS, entry_points=(), **packages):
        found = list(entry_points)
        for name, module in packages.items():
            dist = SimpleNamespace(name=name)
            load = lambda module=module: module  # noqa: E731
            found.append(SimpleNamespace(name="parts", value=name, dist=dist, load=load))
        monkeypatch.setattr(
            hooks, "entry_points", lambda group: found if group == registry.group else []
        )
        registry.__dict__.pop("manager", None)

    yield installed
    for registry in (SCORERS, REPAIRS, DECOMPOSERS):
        registry.__dict__.pop("manager", None)


def refused(given, registry=SCORERS) -> str:
    """The one sentence that says what is wrong."""
    with pytest.raises(RecipeError) as error:
        registry.make(given)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and ". " not in message
    return message


def test_a_part_is_made_of_its_name_a_mapping_or_itself(install):
    install(theirs=module_with(SCORERS, Steep))
    steep = SCORERS.make({"name": "steep", "slope": 2})
    assert SCORERS.make(steep) is steep
    assert steep.settings() == {"name": "steep", "slope": 2.0}
    assert SCORERS.make("steep") == SCORERS.make({"name": "steep"}) == Steep(slope=1.0)


def test_an_unknown_part_is_named_with_those_that_there_are(install):
    install(theirs=module_with(SCORERS, Steep))
    assert f"there is no scorer 'best'; choose one of {NAMES}, steep, or install" in refused("best")


@pytest.mark.parametrize("given", [{"slope": 1.0}, {"name": 3}, {}, 7, None, ["effect"]])
def test_what_names_no_part_is_refused_with_those_that_there_are(install, given):
    install()
    assert f"scorer: {given!r} names none; write one of {NAMES}, or {{name: " in refused(given)


def test_an_unknown_parameter_is_named_with_those_of_the_part(install):
    install(theirs=module_with(SCORERS, Steep))
    message = refused({"name": "steep", "slop": 2})
    assert message == "the scorer steep has no parameter 'slop' (it has slope); leave it out."
    message = refused({"name": "effect", "slop": 2})
    assert message == "the scorer effect has no parameter 'slop' (it has none); leave it out."


def test_a_parameter_of_another_part_is_said_to_be_that_ones(install):
    install(theirs=module_with(SCORERS, Steep))
    message = refused({"name": "effect", "n_components": 64})
    assert "parameter 'n_components' (it has none); it belongs to networks;" in message
    message = refused({"name": "networks", "slope": 2})
    assert (
        "(it has n_components, samples_per_group, signals, strategy, layers_per_window" in message
    )
    assert "it belongs to steep;" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "networks", "strategy": "both"},
            "strategy='both': .*'local', 'windows' or 'global'",
        ),
        ({"name": "networks", "n_components": 1}, "n_components=1: .* greater than or equal to 2"),
        ({"name": "networks", "signals": ["gate"]}, "signals.0='gate': .*'act', 'up' or 'product'"),
        ({"name": "networks", "aggregate": 3, "strategy": 4}, "strategy=4: .*; aggregate=3: "),
        ({"name": "steep", "slope": 0}, "scorer steep: slope=0: .* greater than 0"),
        ({"name": "steep", "slope": "much"}, "scorer steep: slope='much': .* valid number"),
        (
            {"name": "networks", "decomposer": {"name": "nilearn", "tol": 1}},
            "scorer networks: the decomposer nilearn has no parameter 'tol' .* belongs to canica",
        ),
        ({"name": "networks", "decomposer": "lda"}, "no decomposer 'lda'; choose one of canica, n"),
    ],
)
def test_a_wrong_value_is_said_with_what_it_may_be(install, given, message):
    install(theirs=module_with(SCORERS, Steep))
    with pytest.raises(RecipeError, match=message) as error:
        SCORERS.make(given)
    assert "\n" not in str(error.value)


def test_two_parts_of_one_name_are_refused_with_both_packages(install):
    class Again(Steep):
        pass

    install(one=module_with(SCORERS, Steep), other=module_with(SCORERS, Again))
    message = refused("effect")
    assert "one (parts) and other (parts) both bring a scorer called 'steep'; uninstall" in message


def test_a_name_of_ours_is_not_taken(install):
    class Effect(Early):
        name = "effect"

    install(theirs=module_with(SCORERS, Effect))
    message = refused("effect")
    assert message.startswith("funcnet_plugin")
    assert " and theirs (parts) both bring a scorer called 'effect'; uninstall" in message


def test_a_statistic_that_does_not_exist_is_named_with_those_that_do(install):
    class Wishful(Early):
        name = "wishful"
        needs: ClassVar[frozenset[str]] = frozenset({"moments", "hessian"})

    install(theirs=module_with(SCORERS, Wishful))
    assert refused("wishful") == (
        "theirs (parts): the scorer wishful needs hessian, and the statistics are moments, "
        "weight_gradients, output_gradients, samples."
    )


def test_a_repair_may_not_need_what_is_let_go_before_the_cut(install):
    class Wishful(LeastSquares):
        name = "wishful"
        needs: ClassVar[frozenset[str]] = frozenset({"moments", "samples"})

    install(REPAIRS, theirs=module_with(REPAIRS, Wishful))
    message = refused("wishful", REPAIRS)
    assert "the repair wishful needs samples, and a repair gets moments only" in message


class Another(LeastSquares):
    name = "reconstruction"


def test_the_name_of_a_part_that_is_gone_is_free(install):
    install(REPAIRS)
    assert refused("reconstruction", REPAIRS) == (
        "the repair reconstruction is gone: it lost on a real model; take distillation."
    )
    install(REPAIRS, theirs=module_with(REPAIRS, Another))
    assert REPAIRS.make("reconstruction") == Another()


class Idle(Scorer):
    name = "idle"


class Careless(Repair):
    name = "careless"


class Untrained(LeastSquares):
    name = "untrained"
    tunes_the_model: ClassVar[bool] = True


class Aimless(Decomposer):
    name = "aimless"


@pytest.mark.parametrize(
    ("registry", "part", "message"),
    [
        (SCORERS, Idle, "the scorer idle implements neither score nor begin"),
        (REPAIRS, Careless, "the repair careless does not implement repaired"),
        (REPAIRS, Untrained, "tunes the whole model and does not implement tune"),
        (DECOMPOSERS, Aimless, "the decomposer aimless implements neither rotate nor decompose"),
    ],
)
def test_a_part_without_its_method_is_refused_before_a_run(install, registry, part, message):
    install(registry, theirs=module_with(registry, part))
    assert message in refused(part.name, registry)


class Nameless(Scorer):
    """Has no name."""


@pytest.mark.parametrize(
    "brought",
    [[Steep()], Steep(), Early(), [Nameless], ["steep"], [Repair], 3, None, [dict]],
    ids=repr,
)
def test_something_that_is_no_part_is_refused_with_its_package(install, brought):
    module = ModuleType("odd")
    module.funcnet_scorers = hookimpl(lambda: brought)
    install(theirs=module)
    message = refused("effect")
    assert message.startswith("theirs (parts) brings ")
    assert "which is not a class of Scorer with a name; uninstall it" in message


def test_a_package_may_bring_one_part_or_none(install):
    one, none = ModuleType("one"), ModuleType("none")
    one.funcnet_scorers, none.funcnet_scorers = hookimpl(lambda: Steep), hookimpl(lambda: ())
    install(one=one, none=none)
    assert ", ".join(SCORERS.all()) == f"{NAMES}, steep"


def test_a_package_that_cannot_be_imported_is_skipped_with_a_warning(install):
    broken = importlib.metadata.EntryPoint("broken", "no.such.module", SCORERS.group)
    install(entry_points=[broken], theirs=module_with(SCORERS, Steep))
    with pytest.warns(
        UserWarning, match=r"plugin .* \(broken\), module no\.such\.module, is skipped: ModuleNot"
    ):
        assert SCORERS.make("steep").name == "steep"
    assert ", ".join(SCORERS.all()) == f"{NAMES}, steep"


def test_a_package_that_fails_on_import_is_skipped_with_its_reason(install, monkeypatch, tmp_path):
    (tmp_path / "breaks_on_import.py").write_text("raise OSError('libfoo is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = importlib.metadata.EntryPoint("broken", "breaks_on_import", SCORERS.group)
    install(entry_points=[broken])
    with pytest.warns(UserWarning, match="is skipped: OSError: libfoo is missing"):
        assert ", ".join(SCORERS.all()) == NAMES
    assert "breaks_on_import" not in sys.modules


def test_a_package_whose_hook_fails_is_skipped_with_a_warning(install):
    module = ModuleType("fails")
    module.funcnet_scorers = hookimpl(lambda: 1 / 0)
    install(theirs=module, others=module_with(SCORERS, Steep))
    with pytest.warns(UserWarning, match=r"theirs \(parts\) is skipped: ZeroDivisionError"):
        assert SCORERS.make("steep").name == "steep"


@pytest.mark.parametrize(
    ("read", "name"),
    [
        ("moments", "moments"),
        ("weight_gradients", "weight_gradients"),
        ("output_gradients", "output_gradients"),
        ("watch", "samples"),
    ],
)
def test_what_a_scorer_did_not_declare_it_does_not_get(read, name):
    unit = bind(make_llama()).blocks[0]
    with pytest.raises(RecipeError, match=f"reads {name} and declares nothing; .* in needs"):
        getattr(Evidence(unit, 0, {}), read)


def test_what_a_repair_did_not_declare_it_does_not_get():
    unit = bind(make_llama()).blocks[0]
    with pytest.raises(RecipeError, match="reads moments and does not declare them"):
        _ = Cut(unit, torch.arange(4), {}).moments


@pytest.mark.usefixtures("forget_the_session")
def test_a_run_whose_scorer_reads_what_it_did_not_declare_says_so(install, fresh, texts):
    install(theirs=module_with(SCORERS, Undeclared, Early))
    # although another scorer of the recipe has it measured
    text = recipe("WidthPruningModifier", scorer=["undeclared", "surgeon"])
    with pytest.raises(RecipeError, match="reads output_gradients and declares moments; its class"):
        run(fresh(), texts, text)
