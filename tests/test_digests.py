"""Digests of files are SHA-256, and need nothing that Python 3.10 has not."""

import ast
import hashlib
from pathlib import Path

import funcnet_plugin
from funcnet_plugin import digests
from funcnet_plugin.digests import digest_of_file


def test_a_file_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_AT_ONCE", 3)
    (tmp_path / "some").write_bytes(b"ten bytes!")
    assert digest_of_file(tmp_path / "some") == hashlib.sha256(b"ten bytes!").hexdigest()


def test_no_module_calls_what_came_after_python_3_10():
    newer = {"file_digest", "StrEnum", "ExceptionGroup", "TaskGroup", "tomllib"}
    for path in Path(funcnet_plugin.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name not in newer, f"{path}:{node.lineno} uses {name}"
