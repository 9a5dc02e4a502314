"""A whole subject, timed as a user meets it: `python -m personalar.run` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time


def with_subject(rest: list[str]) -> list[str]:
    """Return the settings of a run, of the cat where they name no subject."""
    return rest if any("subject=" in word for word in rest) else ["+subject=cat", *rest]


def minutes(rest: list[str]) -> float:
    """Return the minutes from the command to its report: start, stages, pictures, scores and all.

    Raises:
        ValueError: with the run's last words, when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "personalar.run", *with_subject(rest), f"hydra.run.dir={folder}"]
        started = time.perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        passed = time.perf_counter() - started
    if done.returncode:
        raise ValueError(f"the whole run failed ({' '.join(command)}):\n{done.stdout[-2000:]}")
    return passed / 60
