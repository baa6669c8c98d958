"""Thin faces to the programs we plug into. Nothing in the package depends on this folder."""
