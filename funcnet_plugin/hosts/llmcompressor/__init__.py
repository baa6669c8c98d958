"""Events of llm-compressor, translated into calls of `run`."""
