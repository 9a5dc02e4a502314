"""Whole runs: personalization, sweeps, benchmarks."""
