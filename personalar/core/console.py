"""Progress of a run: on a terminal a bar per phase with the time left, in a file one line per phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class Reporter:
    """Print progress; silent where `enabled` is false (ranks above zero, tests)."""

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        """Speak to `console`, standard output by default."""
        self.enabled = enabled
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._booked = 0.0
        """Seconds that ended phases took; a phase inside another one is booked once, as its own."""

    def say(self, message: str, *, style: str | None = None) -> None:
        """Print one line (markup is not interpreted)."""
        if self.enabled:
            self.console.print(printable(message), style=style, markup=False)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
        """Show a bar while the block runs; yields `advance(count=1, note="")`."""
        texts = [TextColumn(text) for text in ("{task.description}", "{task.fields[note]}", "eta")]
        columns = (texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeElapsedColumn(), texts[2])
        progress = Progress(
            *columns, TimeRemainingColumn(), console=self.console, disable=not self.is_live, transient=True
        )
        task = progress.add_task(name, total=total, note="")
        started, booked, last_note = time.perf_counter(), self._booked, ""

        def seconds() -> float:
            return time.perf_counter() - started - (self._booked - booked)

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal last_note
            progress.update(task, advance=count)
            pace = progress.tasks[0].completed / max(1e-9, seconds())
            last_note = note or f"{pace:.{1 if pace < 10 else 0}f} {unit}/s"
            progress.update(task, note=last_note)

        with self._alone(progress):
            yield advance
        own = seconds()
        self._booked += own
        done = int(progress.tasks[0].completed)
        self.say(f"{name}: {done} {unit} in {own:.1f} s{', ' + last_note if last_note else ''}")

    @property
    def is_live(self) -> bool:
        """Bars may move: on a real terminal, and not where only FORCE_COLOR (notebooks, CI) claims one."""
        return self.enabled and self.console.is_terminal and self.console.file.isatty()

    @contextmanager
    def _alone(self, progress: Progress) -> Iterator[None]:
        """Show `progress` while the block runs; the bar of a phase around it waits, as only one can move."""
        outer, self._bar = self._bar, progress
        if outer is not None:
            outer.stop()
        try:
            with progress:
                yield
        finally:
            self._bar = outer
            if outer is not None:
                outer.start()
