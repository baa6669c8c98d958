"""Cuts something else than neurons, by methods that others have published."""
