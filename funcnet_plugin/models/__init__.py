"""Modelling code that transformers does not have."""
