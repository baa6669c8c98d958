"""Being found by hosts that nobody told about us, and never being the reason that one fails."""

import os
import subprocess
import sys

import pytest

from funcnet_plugin.hosts import arrivals
from tests.hosting import WITHOUT_US

RECIPE = (
    "from llmcompressor.recipe import Recipe\n"
    "recipe = Recipe.create_instance('s_stage: {p_modifiers: "
    "{FunctionalNetworkModifier: {pruning_ratio: 0.2}}}')\n"
    "assert type(recipe.modifiers[0]).__name__ == 'FunctionalNetworkModifier'\n"
)
LM_EVAL = (
    "from lm_eval.api.registry import get_model\n"
    "assert get_model('funcnet').__name__ == 'FuncnetLM'\n"
    "assert get_model('hf').__name__ == 'HFLM'\n"
)
HEAVY = "{'transformers', 'llmcompressor', 'lm_eval', 'sklearn', 'nilearn', 'yaml', 'pluggy'}"


def python(code: str, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True,
        env=os.environ | (env or {}),
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import llmcompressor\n" + RECIPE,
        "import torch, llmcompressor\n" + RECIPE,
        # torch is first imported from inside the factory's own import chain
        "import llmcompressor.modifiers.factory\n" + RECIPE,
        "from llmcompressor import oneshot\n" + RECIPE,
        "import torch\n" + LM_EVAL,
        "import lm_eval.models, torch\n" + LM_EVAL,
        # simple_evaluate's own first step
        "from lm_eval import simple_evaluate\nimport torch\n" + LM_EVAL,
        "from transformers import LlamaForCausalLM as m\nassert m.__init__\n" + RECIPE + LM_EVAL,
        "import funcnet_plugin\n" + RECIPE + LM_EVAL,
        "import funcnet_plugin, llmcompressor.modifiers.factory\n" + RECIPE,
    ],
)
def test_hosts_know_us_in_any_import_order(code):
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "funcnet" not in done.stderr


def test_importing_torch_imports_nothing_heavy_of_ours():
    done = python(
        "import sys, torch\n"
        "assert 'funcnet_plugin.hosts.autoload' in sys.modules\n"
        f"assert not set(sys.modules) & {HEAVY}\n"
        "assert 'funcnet_plugin.hosts.arrivals' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_switch_turns_everything_off():
    done = python("import sys, torch; assert 'funcnet_plugin' not in sys.modules", WITHOUT_US)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "broken",
    ["raise ImportError('moved away')", "syntax error here", "import no_such_module_anywhere"],
)
def test_a_broken_package_leaves_torch_alive_with_one_warning(tmp_path, broken):
    """The boot shim is what torch calls; the package it looks for is broken."""
    package = tmp_path / "funcnet_plugin"
    package.mkdir()
    (package / "__init__.py").write_text(broken)
    done = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        # an editable install's finder would answer first
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import torch; print(torch.ones(2).sum().item())"
    )
    assert done.returncode == 0 and done.stdout == "2.0\n"
    assert done.stderr.count("UserWarning") == 1
    assert "funcnet_plugin is installed but cannot be loaded" in done.stderr


def test_a_host_that_changed_under_us_stays_alive_with_one_warning():
    done = python(
        "import sys, types\n"
        "import funcnet_plugin.hosts.arrivals as arrivals\n"
        "def fail(module): raise AttributeError('no such registry')\n"
        "arrivals.add_lm_eval_model = fail\n"
        "import lm_eval.models\n"
        "from lm_eval.api.registry import get_model\n"
        "print(get_model('hf').__name__)\n"
    )
    assert done.returncode == 0 and done.stdout == "HFLM\n"
    assert done.stderr.count("could not be added to lm_eval.models") == 1


def test_a_host_outside_the_tested_range_is_named_once(monkeypatch):
    arrivals.check_version.cache_clear()
    monkeypatch.setattr(arrivals, "version", lambda name: "0.99.1")
    with pytest.warns(
        UserWarning, match=r"lm_eval 0\.99\.1 is outside the range .*<0\.5"
    ) as caught:
        arrivals.check_version("lm_eval")
        arrivals.check_version("lm_eval")
    assert len(caught) == 1
    arrivals.check_version.cache_clear()


def test_the_installed_hosts_are_in_the_tested_range(recwarn):
    arrivals.check_version.cache_clear()
    for distribution in arrivals.TESTED:
        arrivals.check_version(distribution)
    assert not recwarn.list


def test_optimum_cli_passes_on_to_our_command_line():
    script = "import sys; sys.argv = ['optimum-cli', *sys.argv[1:]]\n" \
        "from optimum.commands.optimum_cli import main; main()"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, "funcnet", "inspect", "--help"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "optimum-cli funcnet inspect" in done.stdout, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", script, "funcnet", "inspect", "nowhere/at-all"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "no model can be loaded from nowhere/at-all" in done.stderr


def test_nothing_heavy_is_imported_where_hosts_arrive():
    """A host may be in the middle of its own import then."""
    done = python(
        "import sys\n"
        "import funcnet_plugin.hosts.arrivals, funcnet_plugin.hosts.llmcompressor.oneshot\n"
        f"assert not set(sys.modules) & ({HEAVY} - {{'yaml'}} | {{'torch'}})\n"
    )
    assert done.returncode == 0, done.stderr
