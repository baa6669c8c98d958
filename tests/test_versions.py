"""What pyproject.toml declares is what is tested: the lowest versions and the newest."""

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.pages import ROOT


@pytest.fixture(scope="module")
def declared() -> dict[str, Requirement]:
    """By name, all that the package and its tests depend on."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["onnx"], *extras["gguf"], *extras["test"]]
    found = map(Requirement, lines)
    return {canonicalize_name(one.name): one for one in found if one.name != project["name"]}


def pins(name: str) -> dict[str, Version]:
    found = [
        Requirement(line)
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {canonicalize_name(one.name): Version(str(one.specifier)[2:]) for one in found}


def test_the_lowest_versions_that_are_tested_are_those_declared(declared):
    lowest = pins("constraints-lowest.txt")
    # builds of earlier versions for a CPU cannot be had everywhere, and 2.11 ran on a GPU
    tested = {name: f">={version}" for name, version in lowest.items() if name != "torch"}
    assert tested == {name: str(one.specifier) for name, one in declared.items() if name != "torch"}


def test_the_newest_versions_that_are_tested_are_allowed(declared):
    newest = pins("constraints.txt")
    for name, one in declared.items():
        assert one.specifier.contains(newest[name]), f"{one} does not allow {newest[name]}"
