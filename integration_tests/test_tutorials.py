"""What the tutorials say to type is typed, one page after its start, with the demo's model.

A block without a title is run: shell line by line, Python as a script. A block whose title is a
file name is written to that file. Other titles say what a block needs, and it is not run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from funcnet_plugin.demo.skills import documents

PAGES = Path(__file__).parent.parent / "docs" / "tutorials"
BLOCK = re.compile(r'^```(\w+)(?: title="(.*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BEFORE = {"serve.md": ["funcnet prune ./llama --data wiki.jsonl --ratio 0.2 --out ./llama-20"]}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A directory with the model and the text that the pages speak of."""
    folder = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(str(files("funcnet_plugin.demo") / "model"), folder / "llama")
    for name, split in {"wiki": "train", "test": "test"}.items():
        texts = documents(160, seed=0, split=split, lines=12)
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in texts)
        )
    return folder


def run(command, folder):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def type_in(line, folder):
    program, *arguments = shlex.split(line, comments=True)
    assert program == "funcnet", (
        f"only funcnet is typed here, not {program}; give the block a title"
    )
    run([sys.executable, "-m", "funcnet_plugin.cli", *arguments], folder)


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_a_page_does_what_it_says(start, tmp_path, page):
    folder = tmp_path / "here"
    shutil.copytree(start, folder)
    for line in BEFORE.get(page, ()):
        type_in(line, folder)
    blocks = BLOCK.findall((PAGES / page).read_text())
    assert blocks
    # A file may be shown below the code that reads it.
    for _, title, text in blocks:
        if "." in title and " " not in title:
            (folder / title).write_text(text)
    for language, title, text in blocks:
        if title:
            continue
        if language == "python":
            run([sys.executable, "-c", text], folder)
        elif language == "sh":
            for line in text.splitlines():
                type_in(line, folder)
