"""Measures models on text and on tasks, and keeps what was measured."""
