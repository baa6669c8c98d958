"""Calibration text: read, cut into windows, ordered; and what a model writes by itself."""
