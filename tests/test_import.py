"""What importing costs, and what it gives."""

import subprocess
import sys

import pytest

import funcnet_plugin
from funcnet_plugin.errors import FuncnetError

HEAVY = ("torch", "transformers", "llmcompressor", "lm_eval", "sklearn", "nilearn", "matplotlib")


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy():
    python(f"import funcnet_plugin, sys; assert not set(sys.modules) & set({HEAVY!r})")


def test_public_names_can_be_called(tmp_path):
    """`prune` also where the module that holds it was imported before."""
    code = (
        "import inspect\n{imports}\nfrom funcnet_plugin import {name}\n"
        "assert callable({name}) and inspect.signature({name}).parameters\n"
    )
    for name in set(funcnet_plugin.__all__) - {"__version__"}:
        assert callable(getattr(funcnet_plugin, name)), name
    python(code.format(imports="import funcnet_plugin.pruning", name="prune"))
    with pytest.raises(FuncnetError, match="is not empty"):
        (tmp_path / "file").touch()
        funcnet_plugin.prune("model", ["text"], tmp_path)


def test_every_public_name_is_listed():
    assert set(dir(funcnet_plugin)) == set(funcnet_plugin.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = funcnet_plugin.nothing
