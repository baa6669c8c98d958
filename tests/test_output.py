"""Output directories are complete or as they were."""

import pytest

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.output import check_output, staged


def fill(out):
    check_output(out)
    with staged(out) as staging:
        (staging / "config.json").write_text("{}")
        (staging / "part").mkdir()
        (staging / "part" / "weights").write_text("w")


def test_what_cannot_be_replaced_is_filled(tmp_path, monkeypatch):
    """The working directory and a link; a mount point is another such directory."""
    here, elsewhere, link = (tmp_path / name for name in ("here", "elsewhere", "link"))
    here.mkdir()
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    monkeypatch.chdir(here)
    for out in (type(here)("."), link, tmp_path / "new" / "deep"):
        fill(out)
        assert sorted(path.name for path in out.iterdir()) == ["config.json", "part"]
        assert (out / "part" / "weights").read_text() == "w"
        with pytest.raises(CheckpointError, match="is not empty"):
            check_output(out)
    assert link.is_symlink()


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_run_leaves_nothing(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(KeyError), staged(out) as staging:
        (staging / "config.json").write_text("{}")
        raise KeyError
    assert out.exists() == there
    assert not list(tmp_path.rglob("config.json")) and not list(tmp_path.glob(".*"))
    fill(out)


def test_two_runs_into_one_directory_are_not_mixed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match=r"holds config\.json"), staged(out) as slower:
        (slower / "config.json").write_text("slow")
        (out / "config.json").write_text("quick")
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert (out / "config.json").read_text() == "quick"


def test_what_an_interrupted_run_left_is_named(tmp_path):
    (tmp_path / f".{tmp_path.name}-abc").mkdir()
    with pytest.raises(CheckpointError, match=r"-abc; an interrupted run left that, delete it"):
        check_output(tmp_path)
