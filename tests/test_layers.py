"""Dependencies go one way: every import is read from the source, wherever it stands."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import funcnet_plugin

PACKAGE = "funcnet_plugin"
ROOT = Path(funcnet_plugin.__file__).parent
# From the bottom up. Parts of one line may not import each other.
LAYERS = (
    ("errors",),
    ("bars", "digests", "disk", "plugins", "products", "screen"),
    ("output", "adapters", "ica"),
    ("measure",),
    ("atlas",),
    ("text", "score", "cut"),
    ("repair", "survey", "lesions"),
    ("run",),
    ("checkpoints", "recipe"),
    ("models", "inspection"),
    ("peers",),
    ("hosts.llmcompressor", "export"),
    ("hosts.lm_eval", "hosts.autoload", "hosts.arrivals"),
    ("hosts.vllm",),  # vLLM calls it, and has its modules watched
    ("preflight", "evaluation", "tasks"),
    ("pruning", "surveying", "lesioning", "report", "runtimes"),
    ("compare", "demo"),
    ("bench",),
    ("cli",),
    ("hosts.optimum",),  # hands its arguments to the command line
)
CORE = {name for line in LAYERS[: LAYERS.index(("run",)) + 1] for name in line}
HOSTS = {"llmcompressor", "lm_eval", "optimum", "vllm"}
# Where a host's own modules are imported besides: to call it, not to be called.
CALLERS = {"pruning", "preflight", "evaluation", "compare", "demo", "lesioning"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module, the package's own `__init__` left out."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """What a module imports, also inside functions and for types only; ours without the prefix."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import, which this test does not read"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                known = inner.removeprefix(f"{PACKAGE}.") in modules()
                found.add(inner if known else node.module)
    return frozenset(other.removeprefix(f"{PACKAGE}.") for other in found)


def part_of(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"hosts.{rest.partition('.')[0]}" if first == "hosts" and rest else first


def test_every_part_of_the_package_has_its_place():
    placed = [name for line in LAYERS for name in line]
    parts = {part_of(name) for name in modules()} - {"hosts"}  # its __init__ is empty
    assert sorted(placed) == sorted(parts)


def test_imports_point_downwards():
    level = {name: i for i, line in enumerate(LAYERS) for name in line}
    upwards = [
        f"{name} imports {other}"
        for name in modules()
        for other in imports(name) & set(modules())
        if part_of(name) != part_of(other) and level[part_of(name)] <= level[part_of(other)]
    ]
    assert not upwards


def test_no_module_imports_itself_through_others():
    graph = {name: imports(name) & set(modules()) - {name} for name in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_core_knows_no_host():
    for name in modules():
        known = {other.partition(".")[0] for other in imports(name)} & HOSTS
        part = part_of(name)
        if part in CORE:
            assert not known, f"{name} imports {known}"
        elif not part.startswith("hosts"):
            assert not known or part in CALLERS, f"{name} imports {known}"
