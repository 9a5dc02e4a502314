"""Every fault and every bad input that is tried, in one command: `make chaos` writes docs/reliability.md.

    python tests/chaos.py [--out docs/reliability.md] [--kills 20] [--jobs 1]

A page is measured, never written by hand: counts come from the tests as they ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = (  # run side by side with --jobs
    ("tests/test_faults.py",),
    ("tests/test_resume.py", "tests/test_faults_together.py"),
    (
        "tests/test_run_lock.py",
        "tests/test_photos.py",
        "tests/test_concept.py",
        "tests/test_artefacts.py",
        "tests/test_hostile_prompts.py",
        "tests/test_knobs.py",
        "tests/test_locate.py::test_what_the_hub_can_answer",
        "tests/test_locate.py::test_a_full_disk_is_told_before_the_download",
        "tests/test_generator.py::test_out_of_memory_halves_the_batch_and_goes_on",
        "tests/test_dashboard.py::test_without_an_account_it_stays_on_this_machine",
        "tests/test_dashboard.py::test_a_network_lost_in_mid_run_costs_nothing",
    ),
)
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
    ("process_that_dies",
     "one process of a distributed run dies",
     "the others end in one sentence; goes on"),
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
    ("diverged",
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
        pattern = next(pattern for pattern, *_ in ROWS if re.search(pattern, report.nodeid.split("[")[0]))
        if report.when == "teardown":  # where hypothesis tells how many examples there were
            self.rows[pattern].inputs += max(0, examples_of(report) - 1)
        if report.when == "teardown" or (report.when != "call" and report.passed):
            return
        row = self.rows[pattern]
        row.tests += 1
        row.inputs += inputs_of(report)
        row.held += report.passed
        row.skipped += report.skipped
        row.failed += report.failed
        if report.failed:
            self.failures.append(report.nodeid)


def inputs_of(report: pytest.TestReport) -> int:
    """Return how many inputs a test says it tried, or the one that it is."""
    return next((int(value) for name, value in report.user_properties if name == "inputs"), 1)


def examples_of(report: pytest.TestReport) -> int:
    """Return how many examples a property test was given, none for another test."""
    told = str(getattr(report, "_hypothesis_stats", ""))  # where --hypothesis-show-statistics keeps it
    return sum(map(int, re.findall(r"(\d+) (?:passing|failing)", told)))


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


def run_part(number: int) -> None:
    """Run one of `PARTS` in this process and print what it counted as the last line."""
    counter = Counter()
    arguments = ["-q", "--hypothesis-show-statistics", "-p", "no:cacheprovider", "-m", "", *PARTS[number]]
    code = pytest.main(arguments, [counter])
    rows = {pattern: vars(tally) for pattern, tally in counter.rows.items()}
    print(json.dumps({"code": int(code), "rows": rows, "failures": counter.failures}))


def start_part(number: int) -> Counter:
    """Run one of `PARTS` in a process of its own and return what it counted."""
    words = [sys.executable, __file__, "--part", str(number)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    counter = Counter()
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        told = {"code": 1, "rows": {}, "failures": [f"part {number} ended without a count"]}
    for pattern, numbers in told["rows"].items():
        counter.rows[pattern] = Tally(**numbers)
    counter.failures = told["failures"]
    counter.failures += [f"part {number} ended with {told['code']}"] * (told["code"] not in (0, 1))
    return counter


def together(parts: Sequence[Counter]) -> Counter:
    """Return the sum."""
    counter = Counter()
    for part in parts:
        counter.failures += part.failures
        for pattern, tally in part.rows.items():
            for name, number in vars(tally).items():
                setattr(counter.rows[pattern], name, getattr(counter.rows[pattern], name) + number)
    return counter


def main() -> None:
    """Run the tests and write the page; the exit code is 1 when something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is not None:
        run_part(given.part)
        return
    os.environ["PERSONALAR_KILLS"] = str(given.kills)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads wait for each other on a busy machine
    started = time.perf_counter()
    with ThreadPoolExecutor(given.jobs) as pool:
        counter = together(list(pool.map(start_part, range(len(PARTS)))))
    command = f"python tests/chaos.py --kills {given.kills} --jobs {given.jobs}"
    text = page(counter, command=command, seconds=time.perf_counter() - started)
    given.out.write_text(text, encoding="utf-8")
    print(f"page: {given.out}")
    sys.exit(1 if counter.failures else 0)


if __name__ == "__main__":
    main()
