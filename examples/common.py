"""What the examples work on: the small model that comes with the package, and text for it."""

import json
from importlib.resources import files
from pathlib import Path

from funcnet_plugin.demo.skills import documents

MODEL = str(files("funcnet_plugin.demo") / "model")


def text(path: Path, split: str, count: int = 64) -> Path:
    """Write records with the text of the model's skills."""
    lines = (json.dumps({"text": page}) for page in documents(count, seed=0, split=split, lines=12))
    path.write_text("\n".join(lines) + "\n")
    return path
