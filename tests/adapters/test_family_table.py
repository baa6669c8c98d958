"""docs/architectures.md says of every family what the contract tests run."""

from pathlib import Path

from funcnet_plugin.adapters.builtin import ADAPTERS
from tests.families import FAMILIES, support_table


def test_every_built_in_adapter_is_under_the_contract():
    assert [adapter.name for adapter in ADAPTERS] == list(FAMILIES)


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    assert support_table() in page, f"docs/architectures.md must hold:\n{support_table()}"
