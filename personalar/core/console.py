"""Progress of a run: bars on a terminal, lines in a log file, and progress.json for other programs."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from personalar.core.errors import printable
from personalar.core.files import write_atomic

LINE_EVERY, FILE_EVERY = 10.0, 1.0
"""Seconds between two lines without a terminal, and between two updates of progress.json."""
PACE_OVER = 120.0
"""The time left is estimated from the speed in these last seconds."""


class Reporter:
    """Prints progress, unless `enabled` is false (ranks above zero, tests)."""

    def __init__(
        self, *, enabled: bool = True, console: Console | None = None, file: Path | None = None
    ) -> None:
        """Print to `console` (default: standard output), and update `file` (progress.json)."""
        self.enabled = enabled
        # Without wrapping and highlighting, so that lines in a log stay whole and greppable.
        self.console = console or Console(soft_wrap=True, highlight=False)
        self.file = file if enabled else None
        texts = [TextColumn(text) for text in ("{task.description}", "{task.fields[note]}", "eta")]
        columns = (texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeElapsedColumn(), texts[2])
        self.bars = Progress(
            *columns,
            TimeRemainingColumn(),
            speed_estimate_period=PACE_OVER,
            console=self.console,
            disable=not self.is_live,
            transient=True,
        )
        self._phases: list[Phase] = []
        """Open phases, the innermost last."""
        self._facts: dict[str, Any] = {"phase": "start", "step": 0, "of": 0, "unit": ""}
        self._facts |= {"loss": None, "seconds": 0.0, "eta": None}
        self._said = self._written = time.perf_counter()
        self._lock = threading.Lock()
        self.booked = 0.0
        """Sum of the seconds of all finished phases. An outer phase subtracts what was added during it, so
        that no second is counted twice."""

    def say(self, message: str, *, style: str | None = None) -> None:
        """Print one line (markup is not interpreted)."""
        self._said = time.perf_counter()
        if self.enabled:
            self.console.print(printable(message), style=style, markup=False)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
        """Show a bar while the block runs; yield `Phase.advance`.

        Args:
            name: name of the phase, such as "stage embedding".
            total: number of units of the whole phase.
            unit: plural noun, such as "steps".
        """
        phase = Phase(self, name, total, unit)
        self._phases.append(phase)
        self.bars.start()  # does nothing inside another phase
        try:
            with self._watched():
                self.update()
                yield phase.advance
                self._facts = phase.facts()
        finally:
            self._phases.remove(phase)
            if not self._phases:
                self.bars.stop()  # draws the bar once more
            self.bars.remove_task(phase.task.id)
        own = phase.seconds()
        self.booked += own
        note = f", {phase.note}" if phase.note else ""
        counted = f"the last {phase.done - phase.earlier} of " if phase.earlier else ""
        self.say(f"{name}: {counted}{phase.done} {unit} in {own:.1f} s{note}")

    @property
    def is_live(self) -> bool:
        """Whether bars are shown: on a terminal, but not if only FORCE_COLOR (notebooks, CI) is set."""
        return self.enabled and self.console.is_terminal and self.console.file.isatty()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write the state of the run to progress.json: "running", then "stopped", "failed" or "finished".

        A killed run leaves "running", but its folder is not locked (`core/run_lock.py`).
        """
        self._write("running")
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._write("stopped")
            raise
        except BaseException:
            self._write("failed")
            raise
        self._write("finished")

    def update(self) -> None:
        """Print a line and write progress.json, each if enough time has passed."""
        with self._lock:
            if not self._phases or not self.enabled:
                return
            phase, now = self._phases[-1], time.perf_counter()
            self._facts = phase.facts()
            if not self.is_live and now - self._said >= LINE_EVERY:
                self.say(phase.line())
            if now - self._written >= FILE_EVERY:
                self._written = now
                self._write("running")

    def _write(self, state: str) -> None:
        if self.file is None:
            return
        text = json.dumps({**self._facts, "state": state}, indent=1)
        with suppress(OSError):  # a full disk ends the run where a result is written, not here
            write_atomic(self.file, text.encode(), sync=state != "running")

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Update regularly while the outermost phase runs, also during a long step."""
        if len(self._phases) > 1 or not self.enabled:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(min(LINE_EVERY, FILE_EVERY)):
                self.update()

        # A daemon, so that it never keeps a failed process alive.
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


class Phase:
    """An open phase of a `Reporter`, with its bar, numbers and time (without that of inner phases)."""

    def __init__(self, reporter: Reporter, name: str, total: int, unit: str) -> None:
        """Start the clock; arguments as for `Reporter.phase`."""
        self._bars = reporter.bars
        self._bars.add_task(name, total=total, note="")
        self.task = self._bars.tasks[-1]
        self.name, self.unit, self.note = name, unit, ""
        self.loss: float | None = None
        self.earlier = 0
        """Units that an earlier run finished."""
        self._reporter, self._started, self._booked = reporter, time.perf_counter(), reporter.booked

    @property
    def done(self) -> int:
        """Number of finished units."""
        return int(self.task.completed)

    def seconds(self) -> float:
        """Return the seconds of this phase so far, without those of inner phases."""
        return time.perf_counter() - self._started - (self._reporter.booked - self._booked)

    def advance(
        self, count: int = 1, note: str = "", loss: float | None = None, *, earlier: bool = False
    ) -> None:
        """Count `count` more units. The note is the loss, the given text, or else the speed.

        Args:
            earlier: an earlier run finished these units, in none of the seconds of this one.
        """
        self._bars.update(self.task.id, advance=count)
        if earlier:
            self.earlier += count
            return
        pace = (self.done - self.earlier) / max(1e-9, self.seconds())
        if loss is not None:
            self.loss, note = loss, f"loss {loss:.3f}"
        self.note = note or f"{pace:.{1 if pace < 10 else 0}f} {self.unit}/s"
        self._bars.update(self.task.id, note=self.note)
        self._reporter.update()

    def facts(self) -> dict[str, Any]:
        """Return the content of progress.json: `seconds` of this phase, and `eta`, the seconds left."""
        # JSON has no NaN.
        loss = self.loss if self.loss is not None and math.isfinite(self.loss) else None
        return {
            "phase": self.name,
            "step": self.done,
            "of": int(self.task.total or 0),
            "unit": self.unit,
            "loss": loss,
            "seconds": round(self.seconds(), 1),
            "eta": self.task.time_remaining,
        }

    def line(self) -> str:
        """Return the progress as a line of text."""
        facts = self.facts()
        eta = "unknown" if facts["eta"] is None else timedelta(seconds=round(facts["eta"]))
        note = f", {self.note}" if self.note else ""
        done = f"{self.name}: {self.done} of {facts['of']} {self.unit}"
        return f"{done}{note}, {facts['seconds']:.0f} s, eta {eta}"
