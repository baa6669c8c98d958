"""Surveys of small models, for whatever works with an atlas."""

from pathlib import Path

from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.atlas import write_atlas
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.scorer import Setting
from funcnet_plugin.survey import survey
from funcnet_plugin.survey.build import Survey
from tests.hosting import loader

PARAMETERS = {"n_components": 6, "samples_per_group": 8}


def survey_of(model, texts, starts: int = 2, cut: float = 2.0, **parameters) -> Survey:
    """The survey of a model on the text that `run` calibrates with; tokens are numbers."""
    scorer = Networks(**PARAMETERS | {"decomposer": {"n_init": starts}} | parameters)
    text = Text.read(loader(texts))
    return survey(model, bind(model).blocks, text, scorer, Setting(), cut=cut)


def write_survey(source: str, texts, directory: Path, **parameters) -> Survey:
    """Make the atlas of a checkpoint."""
    found = survey_of(AutoModelForCausalLM.from_pretrained(source).eval(), texts, **parameters)
    write_atlas(directory, found.atlas, found.courses, found.contexts, found.connectivity)
    return found
