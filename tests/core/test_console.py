"""Progress output: bars on a terminal only, and each second counted for one phase."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import threading
from pathlib import Path

import pytest
from rich.console import Console

from personalar.core import console as spoken_by
from personalar.core.console import Phase, Reporter


class Terminal(io.StringIO):
    """A stream that claims to be a terminal, and stores what is written."""

    def isatty(self) -> bool:
        return True


def make_reporter(stream: io.StringIO, **console) -> Reporter:
    return Reporter(console=Console(file=stream, soft_wrap=True, highlight=False, **console))


def spoken(stream: io.StringIO, **console) -> str:
    """Return the output of a phase with two steps on `stream`."""
    reporter = make_reporter(stream, **console)
    with reporter.phase("pictures", 2, "images") as advance:
        advance()
        advance(1, "well")
    return stream.getvalue()


@pytest.mark.parametrize("colour", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_file_gets_plain_lines_whatever_the_environment_says(monkeypatch, colour: str) -> None:
    """A notebook's kernel sets FORCE_COLOR=1, with which rich treats a pipe as a terminal."""
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
    """The search for the initial [V] ran inside stage 1, which reported 4 steps in 69 s instead of 4 s."""
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


def test_steps_of_an_earlier_run_take_no_time_of_this_one(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(spoken_by.time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    with make_reporter(stream).phase("stage", 1500, "steps") as advance:
        advance(1496, earlier=True)
        now[0] += 2
        advance(4)
    assert stream.getvalue() == "stage: the last 4 of 1500 steps in 2.0 s, 2.0 steps/s\n"


def test_a_failure_inside_ends_both_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken_by.time, "perf_counter", lambda: 5.0)
    stream = Terminal()
    reporter = make_reporter(stream, force_terminal=True)
    stage, start = reporter.phase("stage", 1, "steps"), reporter.phase("start", 1, "names")
    with pytest.raises(ZeroDivisionError), stage, start:
        raise ZeroDivisionError
    assert " in " not in stream.getvalue()  # nothing is said to be done
    with reporter.phase("scores", 1, "images"):
        pass
    assert "scores: 0 images in 0.0 s" in stream.getvalue()


@pytest.mark.parametrize(("terminal", "lines"), [(False, 3), (True, 0)])
def test_without_a_terminal_a_line_comes_every_ten_seconds(monkeypatch, terminal: bool, lines: int) -> None:
    now = [0.0]
    monkeypatch.setattr(spoken_by.time, "perf_counter", lambda: now[0])
    stream = Terminal() if terminal else io.StringIO()
    reporter = make_reporter(stream, force_terminal=terminal)
    with reporter.phase("stage", 12, "steps") as advance:
        for step in range(12):
            now[0] += 3.0
            advance(1, loss=5.0 - step)
    said = re.findall(r"stage: (\d+) of 12 steps, loss (\S+), (\d+) s, eta", stream.getvalue())
    assert said == [("4", "2.000", "12"), ("8", "-2.000", "24"), ("12", "-6.000", "36")][:lines]


def test_a_step_that_takes_long_is_not_silent(monkeypatch) -> None:
    """The weights are read, or one picture of a large base is drawn: nothing advances."""
    monkeypatch.setattr(spoken_by, "LINE_EVERY", 0.001)
    said = threading.Event()
    reporter = Reporter()
    monkeypatch.setattr(reporter, "say", lambda message: said.set())
    with reporter.phase("pictures", 4, "images"):
        assert said.wait(20)


def test_progress_json_can_be_read_at_any_time(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spoken_by, "FILE_EVERY", 0.0005)
    path, ended, seen = tmp_path / "progress.json", threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            if path.is_file():
                seen.append(json.loads(path.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    reporter = Reporter(console=Console(file=io.StringIO()), file=path)
    with reporter.recorded():
        with reporter.phase("stage", 200, "steps") as advance:
            for step in range(200):
                advance(1, loss=float(step))
        ended.set()
        reader.join()
    steps = [facts["step"] for facts in seen if facts["phase"] == "stage"]
    assert len(set(steps)) > 2 and steps == sorted(steps)
    assert {facts["state"] for facts in seen} == {"running"}
    last = json.loads(path.read_text())
    assert last.pop("seconds") >= 0 and os.listdir(tmp_path) == ["progress.json"]
    assert last == {
        "phase": "stage", "step": 200, "of": 200, "unit": "steps", "loss": 199.0, "eta": 0.0,
        "state": "finished",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt, "stopped"), (SystemExit, "stopped"), (OSError, "failed")]
)
def test_progress_json_says_how_a_run_ended_and_at_which_step(
    tmp_path: Path, error: type, state: str
) -> None:
    path = tmp_path / "progress.json"
    reporter = Reporter(console=Console(file=io.StringIO()), file=path)
    with pytest.raises(error), reporter.recorded(), reporter.phase("stage", 4, "steps") as advance:
        advance(3, loss=float("nan"))
        raise error
    facts = json.loads(path.read_text())
    assert (facts["state"], facts["step"], facts["loss"]) == (state, 3, None)


def test_a_resumed_phase_is_no_faster_for_what_was_done_before(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(spoken_by.time, "perf_counter", lambda: now[0])
    reporter = make_reporter(io.StringIO())
    monkeypatch.setattr(reporter.bars, "get_time", lambda: now[0])
    phase = Phase(reporter, "stage", 100, "steps")
    for steps in (80, 1, 1):
        phase.advance(steps)
        now[0] += 2.0
    assert phase.facts()["eta"] == 36  # 18 steps of 2 s


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    reporter = Reporter(enabled=False, file=tmp_path / "progress.json")
    with reporter.recorded(), reporter.phase("stage", 1, "steps") as advance:
        advance()
    assert not os.listdir(tmp_path)


def test_a_full_disk_does_not_end_a_run_over_its_progress(tmp_path: Path) -> None:
    reporter = Reporter(console=Console(file=io.StringIO()), file=tmp_path / "a file" / "progress.json")
    (tmp_path / "a file").touch()
    with reporter.recorded():
        pass
