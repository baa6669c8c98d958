"""Surveys a dense model: finds its functional networks, and what moves each of them."""

from funcnet_plugin.survey.build import survey

__all__ = ["survey"]
