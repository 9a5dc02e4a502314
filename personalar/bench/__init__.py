"""Measurements: how fast the program is on this machine, beside a baseline in the same run."""
