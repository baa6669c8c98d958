"""Scores neurons by an atlas, so that networks need not be found again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas import Atlas, read_atlas
from funcnet_plugin.atlas.checks import check_weights, check_widths
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.score.scorer import Evidence, Scorer, Setting


class FromAtlas(Scorer):
    """Scores a neuron as the survey did that made an atlas: by how much it belongs to networks.

    Nothing of the calibration text is looked at for these scores, so any ratio follows from one
    survey. They are those of a run that measures all layers on the dense model.

    :param path: directory of the atlas, as `funcnet atlas` made it of this model.
    """

    name = "atlas"
    source = "arXiv 2508.05239"
    needs: ClassVar[frozenset[str]] = frozenset()

    path: str = Field(min_length=1)

    def check(self, units: Sequence[Unit], n_samples: int | None, setting: Setting) -> None:
        atlas = self._atlas()
        check_widths(atlas, units, self.path)
        missing = [unit.index for unit in units if unit.index not in atlas.scores]
        if missing:
            raise AtlasError(
                f"the atlas {self.path} has no scores of layers {missing}; make one of all layers "
                "that are to be cut, or leave the others whole with ignore."
            )

    def check_text(self, units: Sequence[Unit], lengths: Sequence[int], shared: bool) -> None:
        check_weights(self._atlas(), units, self.path)

    def score(self, evidence: Evidence) -> Tensor:
        return self._atlas().scores[evidence.unit.index]

    def _atlas(self) -> Atlas:
        return _read(self.path, _written(self.path))


def _written(path: str) -> float:
    """Tell atlases at one path apart, by when they were written."""
    try:
        return Path(path, "atlas.json").stat().st_mtime
    except OSError:
        return 0.0  # reading says that there is none


@lru_cache(maxsize=1)
def _read(path: str, written: float) -> Atlas:
    """Read an atlas once for all units of a run."""
    return read_atlas(path)


@hookimpl
def funcnet_scorers() -> list[type[Scorer]]:
    return [FromAtlas]
