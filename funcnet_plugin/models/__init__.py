"""Brings modelling code that transformers does not have."""
