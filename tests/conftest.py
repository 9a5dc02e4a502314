"""Settings for all tests; the fixtures make tiny random models in the real formats, and never download."""

from __future__ import annotations

import gc
import os

import torch
from hypothesis import settings

pytest_plugins = [
    f"conftest_{name}" for name in ("backend", "emu3", "hub", "janus", "run", "scoring", "upstream")
]
os.fsync = lambda handle: None  # no test cuts this machine's power
torch.set_num_threads(1)  # two threads are ten times slower than one on a busy machine
settings.register_profile("personalar", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("personalar")


def pytest_collection_finish() -> None:
    """Keep all that was imported out of the garbage collections that a run makes at every stage."""
    gc.collect()
    gc.freeze()
