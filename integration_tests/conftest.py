"""A fresh virtual environment with our wheel in it, as a user's `pip install` leaves it."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import forget_the_session, texts  # noqa: F401  (fixtures of these tests, too)

REPOSITORY = Path(__file__).parents[1]
# Kept between runs: filling it takes minutes. Another set of versions makes it anew.
ENVIRONMENT = REPOSITORY / ".venv-wheel"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, testrun_uid) -> Path:
    """The directory of executables of an environment with the wheel of this checkout."""
    run = ENVIRONMENT / "run"
    # the test processes of a run share it; the first that needs it makes it
    with FileLock(f"{ENVIRONMENT}.lock"):
        if not run.exists() or run.read_text() != testrun_uid:
            _install(tmp_path_factory.mktemp("wheel"))
            run.write_text(testrun_uid)
    return ENVIRONMENT / "bin"


def _install(built: Path) -> None:
    _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", built, REPOSITORY)
    (file,) = built.glob("*.whl")
    versions = (REPOSITORY / "constraints.txt").read_text()
    declared = (REPOSITORY / "pyproject.toml").read_text()
    mark = hashlib.sha256((versions + declared + sys.version).encode()).hexdigest()
    stamp = ENVIRONMENT / "installed"
    python = ENVIRONMENT / "bin" / "python"
    constrain = ("-c", REPOSITORY / "constraints.txt")
    if not stamp.exists() or stamp.read_text() != mark:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        _pip(python, "install", *constrain, "torch")
        _pip(python, "install", *constrain, file)
        stamp.write_text(mark)
    _pip(python, "install", "--no-deps", "--force-reinstall", file)


def _pip(python: str | Path, *arguments: object) -> None:
    subprocess.run(
        [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)],
        check=True, env=os.environ | {"PIP_NO_INPUT": "1"},
    )  # fmt: skip
