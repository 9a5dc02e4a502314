"""Runs in processes of their own, forked from a server that has imported everything: they start at once."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

PRELOAD = [
    "deepspeed",
    "lightning",
    "peft",
    "hydra",
    "personalar.training.train",
    "personalar.run",
    "processes",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOAD)


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_once(run_dir: Path, overrides: Sequence[str]) -> None:
    """Do what `python -m personalar.run` does, in this process; SystemExit passes through."""
    import torch
    from conftest_run import compose_config

    from personalar.core.process import global_rank
    from personalar.core.run_lock import locked
    from personalar.run import personalize, prepare

    torch.set_num_threads(1)
    with locked(run_dir, leads=global_rank() == 0):
        prepared = prepare(compose_config(*overrides), run_dir)
        if prepared is not None:
            personalize(*prepared, command="test")


def run_and_look(run_dir: Path, overrides: Sequence[str]) -> None:
    """Do a run, and raise AssertionError where a network or an engine outlives it."""
    import gc

    run_once(run_dir, overrides)
    gc.collect()
    names = [type(found).__name__ for found in gc.get_objects()]
    alive = [name for name in names if name in ("DeepSpeedEngine", "ChameleonTransformer", "AdamW")]
    assert not alive, alive


def run_interrupted(
    run_dir: Path, overrides: Sequence[str], call: int, rank: int, name: str = "SIGTERM"
) -> None:
    """Do a run in which process `rank` gets signal `name` in its `call`-th forward pass."""
    import signal

    import personalar.training.module

    whole, calls = personalar.training.module.sequence_loss, []

    def interrupted(*args: object, **kwargs: object):
        calls.append(1)
        if len(calls) == call and os.environ["LOCAL_RANK"] == str(rank):
            os.kill(os.getpid(), getattr(signal, name))
        return whole(*args, **kwargs)

    personalar.training.module.sequence_loss = interrupted
    run_once(run_dir, overrides)


def run_filling(run_dir: Path, overrides: Sequence[str], save: int) -> None:
    """Do a run in which the disk of `run_dir` is full when DeepSpeed writes its `save`-th checkpoint."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    write, saves = DeepSpeedEngine.save_checkpoint, []

    def full(engine: DeepSpeedEngine, *args: object, **kwargs: object):
        saves.append(1)
        if len(saves) == save and os.environ["LOCAL_RANK"] == "0":
            with contextlib.suppress(OSError), (run_dir / "ballast").open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(4096))
        return write(engine, *args, **kwargs)

    DeepSpeedEngine.save_checkpoint = full
    run_once(run_dir, overrides)


def run_killed_in(run_dir: Path, overrides: Sequence[str], place: str, count: int, name: str) -> None:
    """Do a run that gets signal `name` at event `count` in `place`: a stage, "sampling" or "scoring"."""
    import signal

    import personalar.training.module
    import personalar.training.train
    from personalar.generation.generator import Generator
    from personalar.scoring.subject_scorer import SubjectScorer

    training: list[str] = []
    met: list[str] = []

    def before(function: Callable, where: str | None) -> Callable:
        def called(*args: object, **kwargs: object):
            if training or where:
                met.append(training[-1] if training else str(where))
                if met[-1] == place and met.count(place) == count:
                    os.kill(os.getpid(), getattr(signal, name))
            return function(*args, **kwargs)

        return called

    train = personalar.training.train.train_stage

    def train_stage(session: object, stage: Any, **kwargs: object) -> None:
        training.append(stage.name)
        train(session, stage, **kwargs)
        training.pop()

    personalar.training.train.train_stage = train_stage
    personalar.training.module.sequence_loss = before(personalar.training.module.sequence_loss, None)
    Generator.codes = before(Generator.codes, "sampling")
    SubjectScorer.score = before(SubjectScorer.score, "scoring")
    run_once(run_dir, overrides)


def run_killed(run_dir: Path, overrides: Sequence[str], moment: int, name: str) -> None:
    """Do a run that gets signal `name` at its `moment`-th event.

    Events are forward passes, batches of pictures, and three to a written file: half of it is on disk, all of
    it is, it has its name.
    """
    import signal

    import torch

    import personalar.training.module
    from personalar.generation.generator import Generator

    passed = []

    def event() -> None:
        passed.append(1)
        if len(passed) == moment:
            os.kill(os.getpid(), getattr(signal, name))

    def before(function: Callable) -> Callable:
        def called(*args: object, **kwargs: object):
            event()
            return function(*args, **kwargs)

        return called

    def write_bytes(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            event()
            return stream.write(data[len(data) // 2 :])

    replace, save = os.replace, torch.save

    def replaced(source: object, target: object) -> None:
        event()
        replace(source, target)
        event()

    def saved(value: object, stream: IO[bytes]) -> None:
        stream.write(b"half of a checkpoint")
        stream.flush()
        event()
        stream.seek(0)
        save(value, stream)

    personalar.training.module.sequence_loss = before(personalar.training.module.sequence_loss)
    Generator.codes = before(Generator.codes)
    Path.write_bytes, os.replace, torch.save = write_bytes, replaced, saved
    run_once(run_dir, overrides)


def _enter(log: Path, environment: dict[str, str], work: Callable[..., None], arguments: tuple) -> None:
    os.environ.update(environment)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        faulthandler.dump_traceback_later(230, file=sys.stderr)
        try:
            work(*arguments)
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(int(stop.code or 0))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        # Not the interpreter's own end: a peer that leaves first may make gloo's destructor wait.
        sys.stdout.flush()
        os._exit(0)


def start(work: Callable[..., None], *arguments: object, log: Path, **environment: str):
    """Start `work(*arguments)` in a fresh process; its output goes to `log`."""
    process = _CONTEXT.Process(target=_enter, args=(log, environment, work, arguments))
    process.start()
    return process


def run_together(
    run_dir: Path,
    *overrides: str,
    world: int = 2,
    timeout: float = 240,
    work: Callable[..., None] = run_once,
    arguments: tuple = (),
    expected: Sequence[int] = (0, 0),
) -> str:
    """Do one run in `world` processes that meet over gloo; return what they said, after all have ended.

    Raises:
        AssertionError: when exit codes differ from `expected` or one did not end in time, with the output.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    log = run_dir.parent / f"{run_dir.name}.log"
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "PYTHONHASHSEED": "0",
    }
    group = [
        start(work, run_dir, overrides, *arguments, log=log, **common, LOCAL_RANK=str(rank))
        for rank in range(world)
    ]
    for process in group:
        process.join(timeout)
    alive = [process for process in group if process.is_alive()]
    for process in alive:
        process.kill()
    said = log.read_text()
    codes = [process.exitcode for process in group]
    assert not alive, f"a process hangs\n{said}"
    assert codes == list(expected), f"exit codes {codes}\n{said}"
    with contextlib.suppress(OSError):
        log.unlink()
    return said
