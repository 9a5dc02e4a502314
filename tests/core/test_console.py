"""What a person sees while a run works: bars on a terminal only, and every second booked once."""

from __future__ import annotations

import io
import os
import pty
import re

import pytest
from rich.console import Console

from personalar.core import console as spoken_by
from personalar.core.console import Reporter


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what is written."""

    def isatty(self) -> bool:
        return True


def make_reporter(stream: io.StringIO, **console) -> Reporter:
    return Reporter(console=Console(file=stream, soft_wrap=True, highlight=False, **console))


def spoken(stream: io.StringIO, **console) -> str:
    """Return what a phase with two steps says on `stream`."""
    reporter = make_reporter(stream, **console)
    with reporter.phase("pictures", 2, "images") as advance:
        advance()
        advance(1, "well")
    return stream.getvalue()


@pytest.mark.parametrize("colour", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_file_gets_plain_lines_whatever_the_environment_says(monkeypatch, colour: str) -> None:
    """A notebook's kernel sets FORCE_COLOR=1: rich then takes a pipe for a terminal."""
    monkeypatch.setenv(colour, "1")
    said = spoken(io.StringIO())
    assert re.fullmatch(r"pictures: 2 images in \d+\.\d s, well\n", said)


def test_a_terminal_gets_bars() -> None:
    said = spoken(Terminal(), force_terminal=True)
    assert "━" in said and "2/2" in said and said.endswith(" s, well\n")


def test_a_real_terminal_is_one() -> None:
    main, side = pty.openpty()
    with os.fdopen(side, "w") as stream:
        assert Reporter(console=Console(file=stream, force_terminal=True)).is_live
        assert not Reporter(enabled=False, console=Console(file=stream, force_terminal=True)).is_live
    os.close(main)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_phase_inside_another_is_booked_once(monkeypatch, terminal: bool) -> None:
    """The search for [V]'s start ran inside the first stage, which said 4 steps in 69 s for 4 of them."""
    now = [0.0]
    monkeypatch.setattr(spoken_by.time, "perf_counter", lambda: now[0])
    stream = Terminal()
    reporter = make_reporter(stream, force_terminal=terminal)
    with reporter.phase("stage", 4, "steps") as step:
        with reporter.phase("start", 128, "names") as name:
            now[0] += 47
            name(128, "tried")
        with reporter.phase("class", 2, "images") as picture:
            now[0] += 5
            picture(2)
        now[0] += 2
        step(4)
    with reporter.phase("scores", 1, "images"):
        now[0] += 3
    said = re.findall(r"[a-z]+: \d+ \w+ in [^\n\r\x1b]*", stream.getvalue())
    assert said == [
        "start: 128 names in 47.0 s, tried",
        "class: 2 images in 5.0 s, 0.4 images/s",
        "stage: 4 steps in 2.0 s, 2.0 steps/s",
        "scores: 0 images in 3.0 s",
    ]


def test_a_failure_inside_ends_both_bars() -> None:
    stream = Terminal()
    reporter = make_reporter(stream, force_terminal=True)
    stage, start = reporter.phase("stage", 1, "steps"), reporter.phase("start", 1, "names")
    with pytest.raises(ZeroDivisionError), stage, start:
        raise ZeroDivisionError
    assert " in " not in stream.getvalue()  # nothing is said to be done
    with reporter.phase("scores", 1, "images"):
        pass
    assert "scores: 0 images in 0.0 s" in stream.getvalue()
