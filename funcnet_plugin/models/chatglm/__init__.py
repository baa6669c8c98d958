"""Reads ChatGLM3 (and 2, of the same layout) in its original format, natively in transformers.

Their remote code does not run under transformers 5. It does not need to: the network is
transformers' own `Glm` under other names. Reading gives the original names their meaning, and
saving writes them back, so programs made for the original format read the result.
"""
