"""Commands as separate processes, which are found again by their folders.

A run continues when the browser or the server ends. Its state is read from files: the lock shows whether a
process is active, progress.json its progress, and run.json or the log the command that resumes it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from personalar.config.command_line import as_value
from personalar.config.fields import key_of
from personalar.core.files import fits, read_json
from personalar.core.own_files import PROGRESS_FILE
from personalar.core.png import read_png_metadata
from personalar.core.run_folder import read_record, stage_names
from personalar.core.run_lock import LOCK_FILE

LOG_SHOWN = 4000
"""Bytes of the end of a log that are shown."""
LAST_STAGE = "the last one"
STOPPED = (0, -signal.SIGINT, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a command that did not fail."""
PROGRESS = {
    "phase!": str,
    "step!": int,
    "of!": int,
    "loss": (float, None),
    "eta": (float, None),
    "state!": str,
}


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a command."""

    status: str
    """"starting", "running", "finished", "stopped", "failed", "killed", or "" if it never ran."""
    progress: dict[str, Any]
    """Content of progress.json; empty if it does not exist."""
    log: str
    """The end of its log."""

    @property
    def at_work(self) -> bool:
        """Whether its process is active."""
        return self.status in ("starting", "running")


class Jobs:
    """The commands of a folder of runs, started by this page or elsewhere."""

    def __init__(self, outputs: Path) -> None:
        """Manage the runs in `outputs`; uploads, logs and new pictures are in `outputs/web`."""
        self.outputs = Path(os.path.abspath(outputs))
        self.own = self.outputs / "web"
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def runs(self) -> list[str]:
        """Return the names of all runs, the most recently changed first."""
        # outputs/BASE/SUBJECT, outputs/BENCHMARK/METHOD/SUBJECT, or a folder that was chosen by hand.
        levels = ("*", "*/*", "*/*/*")
        found = {path.parent for deep in levels for path in self.outputs.glob(f"{deep}/run.json")}
        found |= set(self._children)  # also runs that have not written run.json yet
        # A set of photos named "run" has a file run.json too.
        found = {folder for folder in found if not folder.is_relative_to(self.own)}
        changed = {folder: folder.stat().st_mtime for folder in found if folder.is_dir()}
        newest = sorted(found, key=lambda folder: (folder in self._children, changed.get(folder, 0)))
        return [folder.relative_to(self.outputs).as_posix() for folder in reversed(newest)]

    def folder(self, name: str) -> Path:
        """Return the run folder of that name.

        Raises:
            ValueError: the name is not that of a folder in `outputs`.
        """
        # Names come from the browser: "../x" must not leave the folder, and NUL raises an error in the OS.
        path = Path(os.path.normpath(self.outputs / name)) if "\0" not in name else self.outputs
        if path == self.outputs or not path.is_relative_to(self.outputs) or path.is_relative_to(self.own):
            raise ValueError(f"{name!r:.80} is not the name of a run: use letters, digits, - and _")
        return path

    def pictures(self, name: str) -> Path:
        """Return the folder of new pictures of a run's subject."""
        return self.own / "pictures" / self.folder(name).relative_to(self.outputs)

    def pushes(self, name: str) -> Path:
        """Return a path for `start` and `state` of the uploads of a run; only its log is written."""
        return self.own / "pushes" / self.folder(name).relative_to(self.outputs)

    def log(self, folder: Path) -> Path:
        """Return the path of the log of the command of `folder`."""
        name = folder.relative_to(self.outputs)
        return self.own / "logs" / name.parent / f"{name.name}.log"

    def archive(self, name: str) -> Path:
        """Write the concept of a run to a new ZIP file, and return its path.

        Raises:
            ValueError: the run has no concept.
        """
        concept = self.folder(name) / "concept"
        files = sorted(path for path in concept.rglob("*") if path.is_file())
        if not files:
            raise ValueError(f"{name} has no concept yet: it is written at the end of the run")
        (self.own / "cache").mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(suffix=".zip", dir=self.own / "cache")
        # Not compressed, because weights would not become smaller.
        with os.fdopen(descriptor, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(concept))
        return Path(path)

    def start(self, folder: Path, command: Sequence[str]) -> None:
        """Start `command` (python -m personalar...), which writes to `folder`.

        Raises:
            ValueError: another process is active there.
        """
        if (pid := self.process(folder)) is not None:
            raise ValueError(f"process {pid} is at work in {folder}: stop it, or wait for it")
        log = self.log(folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab", buffering=0) as stream:
            stream.write(f"$ {shlex.join(command)}\n".encode(errors="backslashreplace"))
            self._children[folder] = subprocess.Popen(
                [sys.executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that Ctrl-C ends only the server
            )

    def stop(self, folder: Path) -> None:
        """Send SIGINT to the process of `folder`; a run saves its state, so it can be resumed."""
        if (pid := self.process(folder)) is not None:
            os.kill(pid, signal.SIGINT)

    def resume(self, folder: Path) -> None:
        """Start the command of `folder` again.

        Raises:
            ValueError: neither run.json nor the log contains a command.
        """
        command = self.command(folder)
        if command is None:
            raise ValueError(f"no command is known for {folder}: press Start with its settings")
        self.start(folder, command)

    def process(self, folder: Path) -> int | None:
        """Return the id of the active process of `folder`, started by this page or not; None without one."""
        child = self._children.get(folder)
        if child is not None and child.poll() is None:
            return child.pid
        lock = folder / LOCK_FILE
        with suppress(OSError, ValueError, TypeError, KeyError, psutil.Error):
            pid = int(read_json(lock)["pid"])
            # Process ids are reused, so the process must have the lock file open.
            opened = {Path(file.path) for file in psutil.Process(pid).open_files()}
            return pid if lock.resolve() in opened else None
        return None

    def output(self, folder: Path) -> tuple[str, str]:
        """Return the last command in the log of `folder`, and what it has printed; empty without a log."""
        text = ""
        with suppress(OSError):
            text = self.log(folder).read_text(errors="replace")
        command, _, printed = f"\n{text}".rpartition("\n$ ")[2].partition("\n")
        return command, printed

    def command(self, folder: Path) -> list[str] | None:
        """Return the command of `folder` from run.json, otherwise the last one in its log."""
        found = [self.output(folder)[0]]
        with suppress(OSError, ValueError):
            found.insert(0, read_record(folder / "run.json").get("command") or "")
        for text in found:
            with suppress(ValueError):  # quotes without an end
                words = shlex.split(text)
                if words[:3] == ["python", "-m", "personalar.run"]:
                    # Not the recorded folder: the run may have been moved or copied.
                    words = [word for word in words if key_of(word) != "hydra.run.dir"]
                    return [*words, f"hydra.run.dir={as_value(str(folder))}"]
        return None

    def state(self, folder: Path) -> State:
        """Return the state of the command of `folder`, from its files, its log and its process."""
        child, log = self._children.get(folder), ""
        progress: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found = read_json(folder / PROGRESS_FILE)
            progress = found if fits(found, PROGRESS) else {}
        # Only the end of the log: it can have many megabytes, and is read every second.
        with suppress(OSError), self.log(folder).open("rb") as stream:
            stream.seek(max(0, self.log(folder).stat().st_size - LOG_SHOWN))
            log = stream.read().decode(errors="replace")
        status = progress.get("state") or ("finished" if is_finished(folder) else "")
        if self.process(folder) is not None:
            # A process that loads the model has not written progress.json yet.
            status = "running" if status == "running" else "starting"
        elif child is not None and child.returncode not in STOPPED:
            status = "failed" if child.returncode > 0 else "killed"  # below 0: by a signal
        # progress.json was not updated at the end: the process was killed.
        elif status == "running":
            status = "killed"
        elif child is not None and not status:
            status = "finished" if child.returncode == 0 else "stopped"
        return State(status=status, progress=progress, log=log)


def is_finished(folder: Path) -> bool:
    """Return whether run.json has the entry of a finished run."""
    with suppress(OSError, ValueError):
        return read_record(folder / "run.json").get("finished") is not None
    return False


def stage_concepts(folder: Path) -> dict[str, Path]:
    """Return {name of a stage: folder of its concept} of a run, and the run itself, with its last stage."""
    stages = {path.parent.parent.name: path.parent for path in folder.glob("stages/*/concept/concept.json")}
    return {LAST_STAGE: folder, **dict(sorted(stages.items()))}


def grids(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the grid of the base, and the newest one of a stage."""
    # By time, because names of stages have no order.
    found = sorted((folder / "grids").glob("*.png"), key=lambda path: path.stat().st_mtime)
    stages = [path for path in found if path.stem not in ("base", "overview")]
    base = next((path for path in found if path.stem == "base"), None)
    return base, stages[-1] if stages else None


def pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return {"prompt, seed": (picture of the base, picture of the last stage)}.

    Raises:
        OSError, ValueError: run.json is missing or damaged.
    """
    stages = stage_names(read_record(folder / "run.json"))
    # A stage that is not finished has no pictures yet.
    after = next(filter(None, (pictures(folder, stage) for stage in reversed(stages))), {})
    before = pictures(folder, "base")
    return {f"{facts['prompt']}, seed {facts['seed']}": (before[key][0], path)
            for key, (path, facts) in after.items() if key in before}  # fmt: skip


def pictures(folder: Path, stage: str) -> dict[tuple[str, str], tuple[Path, dict[str, str]]]:
    """Return the pictures of the subject after `stage`, with their metadata, by prompt and seed."""
    found = {}
    # In the order of the prompts, which is that of drawing.
    files = (folder / "images" / stage).glob("subject_*.png")
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        with suppress(OSError, ValueError, KeyError):
            facts = read_png_metadata(path)
            found[facts["template"], facts["seed"]] = path, facts
    return found
