"""Whole runs: personalization, sweeps, benchmarks, and their results in Weights & Biases."""
