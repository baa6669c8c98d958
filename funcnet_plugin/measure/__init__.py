"""Runs a model and gathers what is measured: samples, moments, gradients, two models at once."""
