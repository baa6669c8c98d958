"""What stays on the screen while a command runs, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

CHATTER = ("Compression lifecycle", "No accelerator", "Attempting to save", "layer 0: kept")
RUN = ["--ratio", "0.25", "--recipe", "prune_fast", "--set", "align=4",
       "--samples", "2", "--window", "20"]  # fmt: skip


@pytest.fixture
def prune(tmp_path, checkpoint, texts):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))

    def run(*more, **environment):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        known = {k: v for k, v in os.environ.items() if k != "LLM_COMPRESSOR_LOG_LEVEL"}
        command = ["prune", checkpoint, "--data", text, "--out", out, *RUN, *more]
        return subprocess.run(
            [sys.executable, "-m", "funcnet_plugin.cli", *map(str, command)],
            env=known | environment, capture_output=True, text=True, check=True,
        )  # fmt: skip

    return run


def test_the_hosts_are_quiet_and_we_and_their_warnings_are_not(prune):
    done = prune()

    for line in ("the plan for 2 samples", "warning: the repair reads"):
        assert line in done.stderr
    assert not [line for line in CHATTER if line in done.stderr + done.stdout]


def test_verbose_shows_all(prune):
    done = prune("--verbose")

    assert all(line in done.stdout + done.stderr for line in CHATTER)


def test_who_says_what_to_see_sees_it(prune):
    done = prune(LLM_COMPRESSOR_LOG_LEVEL="INFO")

    assert "Compression lifecycle" in done.stdout
