"""Learned concepts: their format, their checks, their cards."""
