"""Holds an atlas: the functional networks of one model, as files and in memory."""

from funcnet_plugin.atlas.atlas import Atlas, Network
from funcnet_plugin.atlas.files import read_atlas, write_atlas
from funcnet_plugin.atlas.maps import SparseMaps

__all__ = ["Atlas", "Network", "SparseMaps", "read_atlas", "write_atlas"]
