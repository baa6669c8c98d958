"""Takes networks out of a running model, or makes them stronger, and measures what that does."""

from funcnet_plugin.lesions.lesion import MODES, Lesion, lesion_of
from funcnet_plugin.lesions.selection import select

__all__ = ["MODES", "Lesion", "lesion_of", "select"]
