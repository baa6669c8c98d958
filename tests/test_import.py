"""What importing costs, and that recipes know us in either import order."""

import subprocess
import sys

import pytest

import funcnet_plugin
from funcnet_plugin.errors import FuncnetError

HEAVY = ("torch", "transformers", "llmcompressor", "lm_eval", "sklearn", "nilearn", "matplotlib")
CREATE = (
    "from llmcompressor.recipe import Recipe\n"
    "recipe = Recipe.create_instance('s_stage: {p_modifiers: "
    "{FunctionalNetworkModifier: {pruning_ratio: 0.2}}}')\n"
    "assert type(recipe.modifiers[0]).__name__ == 'FunctionalNetworkModifier'\n"
)


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy():
    python(f"import funcnet_plugin, sys; assert not set(sys.modules) & set({HEAVY!r})")


@pytest.mark.parametrize(
    "imports",
    [
        "import funcnet_plugin\nimport llmcompressor\n",
        "import llmcompressor\nimport funcnet_plugin\n",
        # llm-compressor's factory half loaded is what an import from inside it would see
        "import funcnet_plugin\nimport llmcompressor.modifiers.factory\n",
    ],
)
def test_recipes_know_the_modifiers_in_any_import_order(imports):
    python(imports + CREATE)


def test_public_functions_can_be_called_however_they_are_imported(tmp_path):
    """However the module that holds it was imported before."""
    code = (
        "import inspect\n{imports}\nfrom funcnet_plugin import {name}\n"
        "assert callable({name}) and inspect.signature({name}).parameters\n"
    )
    for name in set(funcnet_plugin.__all__) - {"__version__"}:
        assert callable(getattr(funcnet_plugin, name)), name
    for imports in (
        "",
        "import funcnet_plugin.pruning",
        "from funcnet_plugin.pruning import prune",
    ):
        python(code.format(imports=imports, name="prune"))
    with pytest.raises(FuncnetError, match="is not empty"):
        (tmp_path / "file").touch()
        funcnet_plugin.prune("model", ["text"], tmp_path)


def test_every_public_name_is_listed():
    assert set(dir(funcnet_plugin)) == set(funcnet_plugin.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = funcnet_plugin.nothing
