"""Reads calibration text, cuts it into windows and orders it; lets a model write its own."""
