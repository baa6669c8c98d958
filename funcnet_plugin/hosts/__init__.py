"""Speaks to the programs that we plug into; `run` and what it stands on know none of them."""
