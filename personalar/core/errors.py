"""Errors that end a command: those of a user become one sentence with a fix.

The rest are bugs and keep their traceback, as all errors do with HYDRA_FULL_ERROR=1.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

OURS = ("personalar", "omegaconf", "hydra")
"""Packages whose ValueErrors are written for the person at the keyboard."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "socket")
"""Packages whose errors mean that the other side did not answer."""
OCCUPIED = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)
GOES_ON = "what was finished is kept, and the same command goes on from there"


@contextmanager
def user_errors(command: str) -> Iterator[None]:
    """Run the block; a user's mistake ends it in one sentence and exit code 1, Ctrl-C in 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {GOES_ON}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        text = sentence(error)
        if text is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"{command}: {text}") from None


def sentence(error: BaseException) -> str | None:
    """Return the message about `error` for a user; None where only a developer can fix it."""
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in NETWORK:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the network was lost ({reason}): {GOES_ON}; HF_HUB_OFFLINE=1 uses what is on this machine"
    if isinstance(error, OSError):
        return _system(error)
    told_by_us = isinstance(error, ValueError | FloatingPointError | ModuleNotFoundError)
    if told_by_us and raised_by(error) in OURS:
        return str(error)
    if left_alone(error):
        reason = str(error).strip().splitlines()[0][:160]
        return f"another process of this run has ended ({reason}): its own message says why; {GOES_ON}"
    if out_of_memory(error):
        reason = (str(error).strip().splitlines() or ["all is taken"])[0][:120]
        return (
            f"not enough memory ({reason}): {GOES_ON}; let it need less with memory.gigabytes=N (what is "
            "free), memory.recompute=true, or a trainer that shares the work (trainer=zero3, "
            "trainer=zero3_offload); docs/memory.md has the numbers"
        )
    return None


def left_alone(error: BaseException) -> bool:
    """Tell whether the processes of a distributed run lost each other."""
    backend = type(error).__name__ in ("DistBackendError", "DistNetworkError")
    return backend or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def out_of_memory(error: BaseException) -> bool:
    """Tell whether memory of the host or of a device ran out."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def raised_by(error: BaseException) -> str:
    """Return the package whose code raised `error`."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    module = frames[-1][0].f_globals
    spec = module.get("__spec__")  # by `python -m`, the name of the command's own file is "__main__"
    return (spec.name if spec is not None else module.get("__name__", "")).split(".")[0]


def _system(error: OSError) -> str:
    """Return the sentence for what the operating system refused."""
    if error.errno is None:
        return str(error)  # ours, or a library's own words
    where = error.filename2 or error.filename
    what = str(where) if where else "a file"
    reason = os.strerror(error.errno)
    if error.errno in FULL:
        return f"{what} could not be written ({reason}): {GOES_ON} once there is room"
    if error.errno in FORBIDDEN:
        return (
            f"{what} may not be written or read ({reason}): change its rights, or choose another folder "
            f"(hydra.run.dir=DIR for a run, out=DIR elsewhere); {GOES_ON}"
        )
    if error.errno in OCCUPIED:
        return (
            f"{what} is in the way ({reason}): move it, or choose another folder "
            "(hydra.run.dir=DIR for a run, out=DIR elsewhere)"
        )
    return f"{what}: {reason}; {GOES_ON} once that is fixed"
