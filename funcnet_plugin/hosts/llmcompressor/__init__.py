"""Translates events of llm-compressor into calls of `run`."""
