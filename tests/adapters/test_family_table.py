"""The README says of every family what the contract tests run."""

from pathlib import Path

from funcnet_plugin.adapters.builtin import ADAPTERS
from tests.families import FAMILIES, support_table


def test_every_built_in_adapter_is_under_the_contract():
    assert [adapter.name for adapter in ADAPTERS] == list(FAMILIES)


def test_the_readme_has_the_table():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert support_table() in readme, f"README.md must hold:\n{support_table()}"
