"""Names the stages of a run, in their order: a plan, a bar and the summary call them alike."""

from __future__ import annotations

OWN_TEXT = "own text"
GRADIENTS = "gradients"
OWN_MOMENTS = "moments of own text"
CALIBRATION = "calibration"
SCORING = "scoring"
REPAIR = "cut and repair"
SAVING = "saving"
NAMES = (OWN_TEXT, GRADIENTS, OWN_MOMENTS, CALIBRATION, SCORING, REPAIR, SAVING)
