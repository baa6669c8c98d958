"""Runs LLaMA after SliceGPT: hidden states cut to their principal axes, with shortcuts.

A model type of its own: stock LLaMA would read such a checkpoint, leave the shortcuts out with no
more than a warning, and compute nonsense. Without this package it is refused as unknown.
"""
