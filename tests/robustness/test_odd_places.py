"""Names with invalid bytes, other encodings, closed pipes, missing folders, no locks, no threads."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from test_photo_folder import picture

from personalar.core.console import Reporter
from personalar.core.errors import printable, user_errors, user_message
from personalar.core.files import write_text
from personalar.core.run_folder import RunFolder
from personalar.core.run_lock import locked
from personalar.data.photos.photo_folder import inspect_folder, print_table

ROOT = Path(__file__).parents[2]


def shell(command: str, where: Path, **environment: str) -> tuple[str, str]:
    """Run a shell command with `$compare` for the program; return stdout and stderr."""
    program = f"{shlex.quote(sys.executable)} -m personalar.compare"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "compare": program, **environment}
    done = subprocess.run(["bash", "-c", command], cwd=where, env=variables, capture_output=True, timeout=120)
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def one_line(said: str, *words: str) -> None:
    assert said.startswith("personalar.compare: ") and len(said.strip().splitlines()) == 1, said
    assert all(word in said for word in words), said


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    _, said = shell("mkdir gone; cd gone; rmdir ../gone; $compare x", tmp_path)
    one_line(said, "working directory was deleted: change to another one with cd")


def test_a_closed_pipe(finished_run: Path, tmp_path: Path) -> None:
    """As with `| head`, or a tee that is killed: the result is still written."""
    _, said = shell(f"$compare {finished_run} --out out | true", tmp_path)
    one_line(said, "the output pipe was closed by its reader (head, tee): repeat the command")
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_a_terminal_of_another_encoding(finished_run: Path, tmp_path: Path) -> None:
    out, said = shell(f"$compare {finished_run} --out out", tmp_path, PYTHONIOENCODING="ascii")
    assert not said and "| After stage 1 |" in out and "page: out/comparison.html" in out


@pytest.mark.parametrize(("name", "told"), [("caf\\xe9", "caf\\\\udce9"), ("red\\x1b[31m", "red\\\\x1b[31m")])
def test_an_argument_that_is_no_text(name: str, told: str, tmp_path: Path) -> None:
    _, said = shell(f"$compare $'{name}'", tmp_path)
    one_line(said, told, "rename the file or folder (mv)")
    _, said = shell(f"mkdir $'{name}'; cd $'{name}'; $compare x", tmp_path)
    one_line(said, told, "the working directory")


def test_names_of_photos_do_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"caf\xe9.png", b"red\x1b[31m.png", "👩\u200d🚀.png".encode()):
        picture().save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / os.fsdecode(name))
    print_table(inspect_folder(tmp_path))
    told = capsys.readouterr().out
    assert (
        "\x1b" not in told
        and "caf\\udce9.png" in told
        and "red\\x1b[31m.png" in told
        and "👩\u200d🚀" in told
    )
    Reporter().say("note: \x1b[31mred")
    assert capsys.readouterr().out == "note: \\x1b[31mred\n"


def test_a_name_that_is_no_text_in_a_record(tmp_path: Path) -> None:
    RunFolder(tmp_path).update(command=os.fsdecode(b"caf\xe9"), noun="犬")
    assert RunFolder(tmp_path).record["command"] == os.fsdecode(b"caf\xe9")
    assert "犬" in (tmp_path / "run.json").read_text(encoding="utf-8")
    write_text(tmp_path / "page.html", "\udce9 é")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "\\udce9 é"
    assert printable("a\nb\tc\x9b\x7f") == "a\nb\\tc\\x9b\\x7f"


@pytest.mark.parametrize("error", [NotImplementedError("flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(
            SystemExit, match=r"x: .*run is on a file system without locks \(flock\).*hydra\.run\.dir=DIR"
        ),
        user_errors("x"),
        locked(tmp_path / "run"),
    ):
        raise AssertionError("not reached")


def test_no_more_threads_or_processes() -> None:
    for error in (RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "try again")):
        assert "allows no more threads or processes (ulimit -u): end others" in str(user_message(error))
    assert "the network failed" in str(
        user_message(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    )  # of a socket
