"""Lets vLLM serve our checkpoints with per-layer widths; the others load in it as they are."""
