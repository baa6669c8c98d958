"""What the documents say of measurements is what the rows of the measurements give."""

import importlib.util
import json
import re

import click
import pytest

from funcnet_plugin.recipe import dump_recipe, load_recipe, pruning_modifier
from tests.pages import PAGES, ROOT, Block, blocks

# What a block of a page may need besides this package, its `test` extra and a small model.
NEEDS = (
    "the package registry", "the hub", "vLLM", "llama.cpp", "the rest of the model's code",
    "minutes", "a model of width 1024",
)  # fmt: skip
TYPED = ("funcnet", "lm_eval")


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
        if (row["model"], row["text"], row["window"]) == ("smollm2-135m", "c4", 256)
        and row.get("seed") == 0
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
    page = (ROOT / "docs" / "experiments" / "runtimes.md").read_text()
    for table in tables:
        assert len(table.splitlines()) > 2
        assert table in page


def test_the_table_of_runtimes_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    serving = _benchmark("serving")
    table = serving.table(map(json.loads, serving.ROWS.read_text().splitlines()))
    assert table in (ROOT / "docs" / "experiments" / "runtimes.md").read_text()


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


def _blocks(language: str) -> list[tuple[str, Block]]:
    """All blocks in a language, each after where it stands."""
    return [
        (f"{page.relative_to(ROOT)}:{block.line}", block)
        for page in PAGES
        for block in blocks(page.read_text())
        if block.language == language
    ]


def test_every_block_is_run_or_says_what_it_needs():
    """integration_tests/test_pages.py runs what has no title, in these languages."""
    for page in PAGES:
        for block in blocks(page.read_text()):
            where = f"{page.relative_to(ROOT)}:{block.line}"
            assert block.language in ("sh", "python", "yaml", "toml", "text"), where
            if block.needs:
                assert block.needs in NEEDS, where
            elif block.file:
                assert re.fullmatch(r"[\w-]+\.(py|toml|yaml)", block.file), where
            elif block.language == "sh":
                for program, *_ in block.commands:
                    assert program in TYPED, f"{where}: say what {program} needs"


def test_commands_on_pages_are_understood():
    """Those that are not run, too, as far as the command line goes."""
    from lm_eval._cli import HarnessCLI
    from typer.main import get_command

    from funcnet_plugin.cli import app

    commands = get_command(app).commands
    lm_eval = HarnessCLI()._parser
    seen = set()
    for where, block in _blocks("sh"):
        for program, *arguments in block.commands:
            seen.add(program)
            if program == "funcnet":
                name, *given = arguments
                try:
                    commands[name].make_context(name, given)
                except click.UsageError as error:
                    pytest.fail(f"{where}: {error.message}")
            elif program == "lm_eval":
                assert lm_eval.parse_args(["run", *arguments]).tasks, where
    assert seen >= set(TYPED)


def test_recipes_on_pages_are_read():
    from llmcompressor.recipe import Recipe

    found = _blocks("yaml")
    assert found
    for _, block in found:
        recipe = load_recipe(block.text)
        name, _ = pruning_modifier(recipe)
        modifiers = Recipe.create_instance(dump_recipe(recipe)).modifiers
        assert name in {type(modifier).__name__ for modifier in modifiers}


@pytest.mark.parametrize(
    ("text", "language", "title", "holds"),
    [
        ("Say:\n\n    funcnet demo\n\nand\n", "sh", "", "funcnet demo"),
        ("Say:\n\n    one\n\n    two\n", "sh", "", "one\n\ntwo"),
        ("```python\n\n    x = 1\n```\n", "python", "", "\n    x = 1\n"),
        ('```sh title="needs vLLM"\nvllm\n```\n', "sh", "needs vLLM", "vllm\n"),
    ],
)
def test_blocks_of_pages_are_found(text, language, title, holds):
    (block,) = blocks(text)
    assert (block.language, block.title, block.text) == (language, title, holds)


@pytest.mark.parametrize("fence", ['```sh hl_lines="1"', "  ```sh", "~~~sh"])
def test_a_fence_of_another_form_is_not_passed_over(fence):
    with pytest.raises(ValueError, match="begins no block"):
        blocks(f"Say:\n\n{fence}\nvllm\n")


def test_a_line_that_goes_on_is_no_block():
    assert not blocks("[^1]: a note\n    that goes on\n")


def test_commands_are_split_as_a_shell_does():
    (block,) = blocks("\n\n    funcnet prune \\\n        --out ./x  # why\n    # no command\n")
    assert block.commands == [["funcnet", "prune", "--out", "./x"]]


def _tables(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line.startswith("|")]
