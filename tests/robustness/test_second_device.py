"""Run `fixtures/second_device_cases.py` in a new process, because it changes torch permanently."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("cases", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_everything_on_a_device_that_is_not_the_cpu(cases: str) -> None:
    file = Path(__file__).parents[1] / "fixtures" / "second_device_cases.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), "-m", cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
