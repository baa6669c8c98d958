"""What the documents say of measurements is what the rows of the measurements give."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from funcnet_plugin.compare import METHODS
from funcnet_plugin.recipe import pruning_modifier

ROOT = Path(__file__).parent.parent


def _benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    return _benchmark("quality_tables")


@pytest.fixture(scope="module")
def page(tables):
    rows = [json.loads(line) for line in tables.ROWS.read_text().splitlines()]
    return tables.page(rows)


@pytest.fixture(scope="module")
def real_page():
    tables = _benchmark("real_tables")
    return tables.page([json.loads(line) for line in tables.ROWS.read_text().splitlines()])


def test_the_page_is_what_the_rows_give(tables, page):
    assert tables.PAGE.read_text() == page


def test_the_page_of_real_models_is_what_the_rows_give(real_page):
    assert _benchmark("real_tables").PAGE.read_text() == real_page


def test_the_page_can_show_whatever_is_compared(tables):
    """It leaves out methods of which it does not know what they cut."""
    for name, recipe in (METHODS | _benchmark("controls").CONTROLS).items():
        modifier, fields = pruning_modifier(recipe)
        cut = {
            "DepthPruningModifier": "layers",
            "HiddenSlicingModifier": "hidden axes",
        }.get(modifier, "one cut" if fields.get("allocation") == "threshold" else "equal widths")
        repaired = ", bias" if fields.get("repair") == "bias" else ""
        assert tables.CUT[name] == cut + repaired, name


def test_what_is_repeated_elsewhere_is_what_was_measured(page):
    tables = _tables("docs/choosing.md")
    measured = [line for line in tables if ", 1." in line or "%, " in line]
    assert measured
    for line in measured:
        assert line in page.splitlines(), f"not what was measured: {line}"


def test_what_readme_says_of_a_real_model_is_what_was_measured(real_page):
    repeated = [line for line in _tables("README.md") if "% | " in line and line.startswith("| `")]
    assert repeated
    for line in repeated:
        assert line in real_page.splitlines(), f"not what was measured: {line}"


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


def test_rows_measured_again_replace_old_ones(tables, tmp_path):
    old = [
        {"comparison": "m-wiki", "method": "best", "ratio": 0.1, "seed": seed, "gm": 1.5}
        for seed in (0, 1)
    ]
    new = {"method": "best", "ratio": 0.1, "seed": 1, "gm": 1.2, "seconds": 3.0}
    (tmp_path / "m-wiki").mkdir()
    lines = [{"row": new}, {"row": {"method": "flap", "refused": "why"}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "m-wiki" / "rows.jsonl").write_text(text)
    merged = tables.merge(old, tables.collect(tmp_path))
    assert [(row["seed"], row["gm"]) for row in merged] == [(0, 1.5), (1, 1.2)]
    assert all("seconds" not in row for row in merged)
