"""The embedded default: a small model with separable skills, so that pruning shows without data."""
