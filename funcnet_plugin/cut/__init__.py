"""Decides how many neurons go, and cuts them out."""
