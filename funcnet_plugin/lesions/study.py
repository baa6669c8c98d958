"""Says what a study of lesions does and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from funcnet_plugin.atlas.atlas import MEMBER


@dataclass(frozen=True)
class Study:
    """Says what is to be done to which networks, and what is measured then.

    Attributes:
        sets: which networks make one lesion each, see `lesions.select`; every network of the atlas
            by itself if there are none. Also `hurting:TASK:N`, see `lesions.choice.hurting`; and
            `enough:TASK:SHARE`, the fewest networks, those of most variance first, that keep this
            share of the task's score where all other neurons are silent.
        chosen_by: directory of an earlier study of single networks, for `hurting`.
        modes: see `lesions.Lesion`.
        gains: of `amplify`; its default if there are none.
        add: of `amplify`.
        thresholds: smallest sizes of entries that make a neuron a member.
        draws: sets of random neurons beside each lesion, as many of each layer.
        seed: of these.
        texts: name -> file, for perplexity.
        text_column: field of a record with the text.
        window, windows: of each text.
        tasks, include_path, limit: see `evaluation.lm_eval_tasks.Tasks`.
        model_args: of lm-eval's model besides the checkpoint, as its command takes them.
    """

    sets: Sequence[str] = ()
    chosen_by: Path | None = None
    modes: Sequence[str] = ("zero",)
    gains: Sequence[float] = ()
    add: float | None = None
    thresholds: Sequence[float] = (MEMBER,)
    draws: int = 5
    seed: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)
    text_column: str = "text"
    window: int = 512
    windows: int = 16
    tasks: Sequence[str] = ()
    include_path: str | None = None
    limit: int | None = None
    model_args: str = ""
