"""Names the stages of a run, in their order: a plan, a bar and the summary call them alike.

Holds what a stage takes as well.
"""

from __future__ import annotations

from dataclasses import dataclass

SURVEY = "survey"
OWN_TEXT = "own text"
PREDICTIONS = "predictions of the dense model"
GRADIENTS = "gradients"
OWN_MOMENTS = "moments of own text"
HEADS = "heads"
CALIBRATION = "calibration"
SCORING = "scoring"
REPAIR = "cut and repair"
DISTILLATION = "distillation"
SAVING = "saving"
NAMES = (
    SURVEY, OWN_TEXT, PREDICTIONS, OWN_MOMENTS, GRADIENTS, HEADS, CALIBRATION, SCORING, REPAIR,
    DISTILLATION, SAVING,
)  # fmt: skip


@dataclass(frozen=True)
class Term:
    """Says what one thing takes: bytes of the host's memory and of the GPU's."""

    what: str
    host: int = 0
    gpu: int = 0


@dataclass(frozen=True)
class Stage:
    """Says what one stage of a run takes at its peak.

    Attributes:
        name: one of `NAMES`.
        terms: what it consists of.
        sent: the terms where weights are sent to the GPU whenever they are needed, because it has
            no room for all of them; None where a stage has one of them at a time in any case.
    """

    name: str
    terms: tuple[Term, ...]
    sent: tuple[Term, ...] | None = None

    @property
    def host(self) -> int:
        """Count the bytes of the host's memory."""
        return sum(term.host for term in self.terms)

    @property
    def gpu(self) -> int:
        """Count the bytes of the GPU's memory; 0 where there is none."""
        return sum(term.gpu for term in self.terms)

    @property
    def mostly(self) -> str:
        """Name what takes most."""
        return max(self.terms, key=lambda term: term.host + term.gpu).what
