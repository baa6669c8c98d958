"""Finds networks in neuron signals by spatial ICA: tensors only, no model and no host."""

from funcnet_plugin.ica.canica import (
    SOLVERS,
    Decomposition,
    canica,
    stability,
    standardise_maps,
)
from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.layers import LayeredSignals
from funcnet_plugin.ica.nilearn_canica import nilearn_canica
from funcnet_plugin.ica.runs import ICAResult, RunReport
from funcnet_plugin.ica.signals import Signals, reduce_time, standardise, whiten, zscore
from funcnet_plugin.ica.stream import SignalStream, TruncatedSignals, least_bytes

__all__ = [
    "SOLVERS",
    "Decomposition",
    "ICAResult",
    "LayeredSignals",
    "RunReport",
    "SignalStream",
    "Signals",
    "TruncatedSignals",
    "canica",
    "fastica",
    "least_bytes",
    "nilearn_canica",
    "reduce_time",
    "stability",
    "standardise",
    "standardise_maps",
    "whiten",
    "zscore",
]
