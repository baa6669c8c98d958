"""Spatial ICA of neuron signals: pure tensor mathematics, no transformers, no llm-compressor."""

from funcnet_plugin.ica.canica import Decomposition, canica
from funcnet_plugin.ica.fastica import FastICAResult, RunReport, fastica
from funcnet_plugin.ica.nilearn_canica import nilearn_canica
from funcnet_plugin.ica.signals import reduce_time, whiten, zscore

# What a recipe may name as `decomposer`. Each takes (X, n_components, **options) and returns a
# Decomposition; X is (n_tokens, n_signals).
DECOMPOSERS = {"canica": canica, "nilearn": nilearn_canica}

__all__ = [
    "DECOMPOSERS",
    "Decomposition",
    "FastICAResult",
    "RunReport",
    "canica",
    "fastica",
    "nilearn_canica",
    "reduce_time",
    "whiten",
    "zscore",
]
