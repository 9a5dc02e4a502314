"""Every fault and every bad input that is tried, in one command: `make chaos` writes docs/reliability.md.

    python tests/chaos.py [--out docs/reliability.md] [--kills 20] [pytest arguments]

A page is measured, never written by hand: counts come from the tests as they ran.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = (
    "tests/test_run_lock.py", "tests/test_faults.py", "tests/test_resume.py", "tests/test_photos.py",
    "tests/test_concept.py", "tests/test_artefacts.py", "tests/test_hostile_prompts.py",
    "tests/test_knobs.py",
    "tests/test_locate.py::test_what_the_hub_can_answer",
    "tests/test_locate.py::test_a_full_disk_is_told_before_the_download",
    "tests/test_generator.py::test_out_of_memory_halves_the_batch_and_goes_on",
    "tests/test_watch.py::test_a_loss_that_is_no_number_stops_with_what_led_to_it",
    "tests/test_dashboard.py::test_without_an_account_it_stays_on_this_machine",
)  # fmt: skip
ROWS = (  # the first pattern that a test's name matches; what is tried; what must come of it
    ("test_photos",
     "photos: formats, sizes, damage, duplicates, links",
     "used with a note, or one sentence"),
    ("test_hostile_prompts",
     "prompts: special names, control signs, 10,000 characters, any script",
     "text, or one sentence"),
    ("misspelt",
     "misspelt settings",
     "the nearest right one named"),
    ("test_knobs",
     "values of another type, out of range, contradictory",
     "one sentence with what is allowed"),
    ("test_run_lock",
     "a second run in one folder, a lock left by a killed one",
     "the second ends in one sentence"),
    ("kills|sigterm",
     "SIGKILL and SIGTERM, at random events and in every phase",
     "ends byte for byte the same"),
    ("disk|write_that_fails|too_large",
     "full disks and file limits, at every kind of file",
     "nothing finished lost; goes on"),
    ("cannot_be_written|becomes_read_only|system_refuses",
     "folders and files that may not be written",
     "one sentence"),
    ("clock",
     "a clock set back, files from the future",
     "ends byte for byte the same"),
    ("network|hub_can|wandb|account",
     "lost networks: W&B, the hub",
     "offline, or one sentence"),
    ("memory",
     "too little memory, in sampling and in training",
     "halves, or names the knobs; goes on"),
    ("diverged|no_number",
     "a loss that is no number",
     "stops before the step, last good one named"),
    ("checkpoint|deepspeed|ddp_resumes|record_of|record_that_names|run_record",
     "checkpoints and run.json: damaged, foreign, hostile",
     "one sentence; no code runs"),
    ("target|yaml|seams",
     "_target_ and strangers' YAML",
     "refused, seams named; no code runs"),
    ("test_artefacts|test_concept|test_resume",
     "concept folders and bases: cut, flipped, hostile",
     "one sentence; no write elsewhere"),
    ("",
     "others",
     "as their tests say"),
)  # fmt: skip


HEAD = (
    "# What was tried to break it",
    "",
    "Written by one command; do not edit. Every row is a kind of fault or input; a test *holds* when what",
    "must come of it came. An input is one damaged file, kill, prompt, value or photo; property tests count",
    "examples.",
    "",
)
TABLE = (
    "| tried | must come of it | tests | inputs | held | failed | skipped |",
    "|---|---|---:|---:|---:|---:|---:|",
)


@dataclass
class Tally:
    """What was tried of one row."""

    tests: int = 0
    inputs: int = 0
    held: int = 0
    failed: int = 0
    skipped: int = 0


class Counter:
    """Counts tests and inputs by row while pytest runs."""

    def __init__(self) -> None:
        self.rows = {pattern: Tally() for pattern, *_ in ROWS}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test when it was called, or when it could not be."""
        if report.when != "call" and report.passed:
            return
        if report.when == "teardown":
            return
        pattern = next(pattern for pattern, *_ in ROWS if re.search(pattern, report.nodeid.split("[")[0]))
        row = self.rows[pattern]
        row.tests += 1
        row.inputs += inputs_of(report)
        row.held += report.passed
        row.skipped += report.skipped
        row.failed += report.failed
        if report.failed:
            self.failures.append(report.nodeid)


def inputs_of(report: pytest.TestReport) -> int:
    """Return how many inputs a test tried: its own count, its examples, or the one that it is."""
    for name, value in report.user_properties:
        if name == "inputs":
            return int(value)
        if "hypothesis" in name:
            return max(1, sum(map(int, re.findall(r"(\d+) (?:passing|failing) examples", str(value)))))
    return 1


def machine() -> str:
    """Return what this machine is, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores of {next(iter(names), 'a CPU')}, "
        f"{memory:.0f} GB, Python {platform.python_version()}"
    )


def commit() -> str:
    """Return the commit that was tried, and whether the tree had changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (
        " and changes" if git("status", "-s") else ""
    )


def page(counter: Counter, *, command: str, seconds: float) -> str:
    """Return docs/reliability.md."""
    lines = [*HEAD, *TABLE]
    total = Tally()
    for pattern, what, outcome in ROWS:
        row = counter.rows[pattern]
        if not row.tests:
            continue
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        numbers = f"{row.tests} | {row.inputs} | {row.held} | {row.failed} | {row.skipped}"
        lines.append(f"| {what} | {outcome} | {numbers} |")
    numbers = f"{total.tests} | {total.inputs} | {total.held} | {total.failed} | {total.skipped}"
    lines += [f"| **all** | | {numbers} |", ""]
    lines += [f"Failed: `{name}`" for name in counter.failures]
    lines += [
        f"- Command: `make chaos`, which runs `{command}`",
        f"- Commit: {commit()}",
        f"- Machine: {machine()}",
        f"- Date: {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes",
        "",
        "Where mounting a small disk is not allowed (not root), the tests that need one are skipped.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the tests and write the page; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md")
    parser.add_argument("--kills", type=int, default=20)
    given, more = parser.parse_known_args()
    os.environ["PERSONALAR_KILLS"] = str(given.kills)
    os.chdir(ROOT)
    counter, started = Counter(), time.perf_counter()
    code = pytest.main(
        ["-q", "--hypothesis-show-statistics", "-p", "no:cacheprovider", *FILES, *more], [counter]
    )
    command = f"python tests/chaos.py --kills {given.kills} {' '.join(more)}".strip()
    text = page(counter, command=command, seconds=time.perf_counter() - started)
    given.out.write_text(text, encoding="utf-8")
    print(f"page: {given.out}")
    sys.exit(code)


if __name__ == "__main__":
    main()
