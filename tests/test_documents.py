"""What the documents say of measurements is what the rows of the measurements give."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real_page():
    tables = _benchmark("real_tables")
    return tables.page([json.loads(line) for line in tables.ROWS.read_text().splitlines()])


def test_the_page_of_real_models_is_what_the_rows_give(real_page):
    assert _benchmark("real_tables").PAGE.read_text() == real_page


def test_what_readme_says_of_a_real_model_is_what_was_measured(real_page):
    repeated = [line for line in _tables("README.md") if "% | " in line and line.startswith("| `")]
    assert repeated
    for line in repeated:
        assert line in real_page.splitlines(), f"not what was measured: {line}"


def test_the_increases_that_are_said_are_those_that_were_measured():
    """In percent, of the first seed, to three digits."""
    rows = [json.loads(line) for line in _benchmark("real_tables").ROWS.read_text().splitlines()]
    measured = {
        (row["method"], row["ratio"]): 100 * (row["gm"] - 1)
        for row in rows
        if (row["model"], row["text"], row.get("seed")) == ("smollm2-135m", "c4", 0) and "gm" in row
    }
    lines = [line for line in _tables("docs/choosing.md") if line.startswith("| `")]
    assert len(lines) == 4
    for line in lines:
        method, *said = line.strip("| ").replace("`", "").split(" | ")
        for ratio, percent in zip((0.1, 0.2, 0.3), said, strict=True):
            expected = measured[method, ratio]
            assert abs(float(percent.rstrip("%")) - expected) <= max(0.51, 0.005 * expected), line


def test_the_table_of_speed_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = _benchmark("speed")
    tables = speed.tables(speed.rows_of("smollm2-135m")).split("\n\n")
    page = (ROOT / "docs" / "experiments.md").read_text()
    for table in tables:
        assert len(table.splitlines()) > 2
        assert table in page


def test_the_table_of_runtimes_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    serving = _benchmark("serving")
    table = serving.table(map(json.loads, serving.ROWS.read_text().splitlines()))
    assert table in (ROOT / "docs" / "experiments.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    """Those between pages of docs/ are checked where the site is built."""
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
        assert "://" in target or (ROOT / target).exists(), f"{name} links to {target}"


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"- {page.relative_to(ROOT / 'docs')}\n" in contents, f"{page} is in no menu"


def test_options_that_pages_name_are_there():
    """Whatever follows `funcnet COMMAND` in a block of a page is an option of that command."""
    from typer.main import get_command

    from funcnet_plugin.cli import app

    commands = get_command(app).commands
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^(?: {4})?funcnet .*", text, re.MULTILINE):
            name, *given = shlex.split(line, comments=True)[1:]
            if name == "COMMAND" or name.startswith("-"):
                continue
            known = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
            for option in (word.partition("=")[0] for word in given if word.startswith("--")):
                assert option in known, f"{page.name}: funcnet {name} has no {option}"


def _tables(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line.startswith("|")]
