"""What a page says to type is typed, in its order, with a small random model as `./llama`.

Shell is run line by line, Python as a script. What a page speaks of and does not make itself is
there before. `tests/pages.py` says how a page marks what is not run here, and
`tests/test_documents.py` sees that nothing is left out.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from funcnet_plugin.demo.skills import documents
from funcnet_plugin.recipe import packaged_recipes, recipe_path
from integration_tests.typed import type_in
from tests.export.test_gguf import byte_pairs
from tests.pages import PAGES, ROOT, Block, blocks

# Wide enough for groups of 128 weights; a fifth of its parameters are 128 neurons of one layer, if
# layers may differ. So few positions, for windows are as long.
SHAPE = {
    "vocab_size": 400, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
UNRELATED = ("a", "b", "c")
# What pages speak of besides the models and the text, and how it is made.
MADE = {
    "llama-20": "prune ./llama --data wiki.jsonl --recipe prune_fast --ratio 0.2",
    "suspect-atlas": "atlas ./llama-20 --data wiki.jsonl",
    **{f"{name}-atlas": f"atlas ./{name} --data wiki.jsonl" for name in UNRELATED},
}


def read(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text()) if not block.needs]


RUN = {
    str(page.relative_to(ROOT)): read(page)
    for page in PAGES
    if any(block.language in ("sh", "python") for block in read(page))
}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A directory with the models, the text and the recipes that the pages speak of."""
    folder = tmp_path_factory.mktemp("pages") / "start"
    folder.mkdir()
    texts = {
        name: documents(count, seed=seed, split=split)
        for name, count, seed, split in (
            # two groups of 40 windows
            ("wiki", 100, 0, "train"), ("plays", 100, 1, "train"), ("test", 24, 0, "test"),
        )
    }  # fmt: skip
    for name, of in texts.items():
        write(folder / f"{name}.jsonl", [{"text": text} for text in of])
    tokenizer = byte_pairs(texts=texts["wiki"], vocabulary=SHAPE["vocab_size"])
    for seed, name in enumerate(("llama", *UNRELATED)):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "blimp").mkdir()
    pair = {"sentence_good": "the dog barks", "sentence_bad": "the dog sings"}
    write(folder / "blimp" / "agreement.jsonl", [pair])
    (folder / "recipes").mkdir()
    for name in packaged_recipes():
        shutil.copy(recipe_path(name), folder / "recipes")
    return folder


def write(path: Path, records: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def copied(name: str, start: Path, folder: Path) -> None:
    """Bring what a page speaks of; it is made when the first page does."""
    if not (start / name).exists():
        command = MADE[name].split()
        if "./llama-20" in command:
            copied("llama-20", start, start)
        type_in("funcnet", [*command, "--out", f"./{name}"], start)
    if folder != start:
        shutil.copytree(start / name, folder / name)


def install(page: Sequence[Block], folder: Path) -> None:
    """Leave the entry points that a page declares where commands in the folder find them."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    lines = []
    for block in page:
        if block.file == "pyproject.toml":
            for group, names in tomllib.loads(block.text)["project"]["entry-points"].items():
                lines += [f"[{group}]", *(f"{name} = {module}" for name, module in names.items())]
    if lines:
        about = folder / "page-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 1\n")
        (about / "entry_points.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("name", RUN)
def test_a_page_does_what_it_says(start, tmp_path, name):
    page, folder = RUN[name], tmp_path / "here"
    shutil.copytree(start, folder, ignore=shutil.ignore_patterns(*MADE))
    typed = "\n".join(block.text for block in page if not block.file)
    makes = re.findall(r"--out \./([\w-]+)", typed)
    for thing in MADE:
        if thing not in makes and re.search(rf"\./{thing}(?![\w-])", typed):
            copied(thing, start, folder)
    # A file may be shown below the code that reads it.
    for block in page:
        if block.file:
            (folder / block.file).write_text(block.text)
    install(page, folder)
    for block in page:
        if block.language == "python":
            type_in("python", [block.text], folder)
        elif block.language == "sh" and not block.file:
            for program, *arguments in block.commands:
                type_in(program, arguments, folder)
