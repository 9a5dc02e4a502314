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

PRELOAD = ["deepspeed", "lightning", "peft", "hydra", "personalar.training", "personalar.run", "processes"]
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

    from personalar.run import personalize, prepare

    torch.set_num_threads(1)
    prepared = prepare(compose_config(*overrides), run_dir)
    if prepared is not None:
        personalize(*prepared, command="test")


def _enter(log: Path, environment: dict[str, str], work: Callable[..., None], arguments: tuple) -> None:
    os.environ.update(environment)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        faulthandler.dump_traceback_later(100, file=sys.stderr)
        try:
            work(*arguments)
        except SystemExit:
            raise
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


def run_together(run_dir: Path, *overrides: str, world: int = 2, timeout: float = 240) -> str:
    """Do one run in `world` processes that meet over gloo; return what they said, after all have ended.

    Raises:
        AssertionError: when one failed or did not end in time, with the output.
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
        start(run_once, run_dir, overrides, log=log, **common, LOCAL_RANK=str(rank)) for rank in range(world)
    ]
    for process in group:
        process.join(timeout)
    alive = [process for process in group if process.is_alive()]
    for process in alive:
        process.kill()
    said = log.read_text()
    codes = [process.exitcode for process in group]
    assert not alive, f"a process hangs\n{said}"
    assert codes == [0] * world, f"exit codes {codes}\n{said}"
    with contextlib.suppress(OSError):
        log.unlink()
    return said
