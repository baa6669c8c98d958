"""Decides how many neurons and heads go, and cuts them out."""
