"""Fixtures for all tests: tiny random models in the real formats, made here, never downloaded."""

from __future__ import annotations

import gc

import torch
from conftest_backend import tiny_backend, tiny_model_dir
from conftest_emu3 import emu3_backend, emu3_dir, emu3_files
from conftest_hub import hub
from conftest_janus import janus_backend, janus_dir, janus_files, tiny_vq_16
from conftest_run import copied, do_run, drawn_once, finished_run, in_pass, run_overrides, session
from conftest_scoring import tiny_scorer_dir
from conftest_upstream import lumina_dir, lumina_files, vqgan_dir
from hypothesis import settings

__all__ = [
    "copied",
    "do_run",
    "drawn_once",
    "emu3_backend",
    "emu3_dir",
    "emu3_files",
    "finished_run",
    "hub",
    "in_pass",
    "janus_backend",
    "janus_dir",
    "janus_files",
    "lumina_dir",
    "lumina_files",
    "run_overrides",
    "session",
    "tiny_backend",
    "tiny_model_dir",
    "tiny_scorer_dir",
    "tiny_vq_16",
    "vqgan_dir",
]

torch.set_num_threads(1)  # two threads are ten times slower than one on a busy machine
settings.register_profile("personalar", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("personalar")


def pytest_collection_finish() -> None:
    """Keep all that was imported out of the garbage collections that a run makes at every stage."""
    gc.collect()
    gc.freeze()
