"""Passes over a model and what they gather: samples, moments, gradients, both models at once."""
