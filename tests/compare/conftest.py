import importlib.util
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def controls():
    """The recipes that the benchmarks compare besides."""
    path = Path(__file__).parents[2] / "benchmarks" / "controls.py"
    spec = importlib.util.spec_from_file_location("controls", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path, texts):
    """Three texts: for calibration, and two for measuring."""
    paths = {}
    for i, name in enumerate(("calibration", "near", "far")):
        paths[name] = tmp_path / f"{name}.jsonl"
        rows = [json.dumps({"text": text}) for text in texts[4 * i : 4 * i + 4]]
        paths[name].write_text("\n".join(rows) + "\n")
    return paths
