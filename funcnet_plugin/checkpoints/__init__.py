"""Reads and writes checkpoints: config block, widths of layers, weights."""
