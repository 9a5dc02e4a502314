"""Errors that end a command: those of a user become one sentence with a fix.

The rest are bugs and keep their traceback, as all errors do with HYDRA_FULL_ERROR=1.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
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
        speak_in_any_encoding()
        check_place(sys.argv[1:])
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {GOES_ON}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has no reader
            text: str | None = f"nobody reads the output any more (a closed pipe, of head or tee): {GOES_ON}"
        else:
            text = sentence(error)
        if text is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"{command}: {printable(text)}") from None


def speak_in_any_encoding() -> None:
    """Spell out what a terminal's encoding, or any, does not have, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Return `text` with the signs spelt out that would command a terminal, or are no text; lines stay."""
    return "".join(
        sign.encode("unicode_escape").decode() if commands(sign) and sign != "\n" else sign for sign in text
    )


def commands(sign: str) -> bool:
    """Tell whether a sign is a control character, or stands for a byte that is no text."""
    return unicodedata.category(sign) in ("Cc", "Cs")


def check_place(arguments: Sequence[str]) -> None:
    """Raise ValueError where the working directory is gone, or where a name is no text."""
    try:
        where = os.getcwd()
    except OSError:
        raise ValueError("the working directory does not exist any more: go to another with cd") from None
    for what, text in (("the working directory", where), *(("the argument", word) for word in arguments)):
        if any(commands(sign) and sign not in "\n\r\t" for sign in text):
            raise ValueError(
                f"{what} {printable(text)[:200]!r} contains bytes that are no UTF-8, or control characters: "
                "rename the file or folder (mv), or give it through a link with a plain name"
            )


def nobody_reads() -> bool:
    """Tell whether standard output is a pipe whose reader has ended."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call on this system, or no real file
        return False


def sentence(error: BaseException) -> str | None:
    """Return the message about `error` for a user; None where only a developer can fix it."""
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in NETWORK:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the network was lost ({reason}): {GOES_ON}; HF_HUB_OFFLINE=1 uses what is on this machine"
    if isinstance(error, OSError) and error.errno != errno.EAGAIN:
        return _system(error)
    told_by_us = isinstance(error, ValueError | FloatingPointError | ModuleNotFoundError)
    if told_by_us and raised_by(error) in OURS:
        return str(error)
    if "can't start new thread" in str(error) or getattr(error, "errno", None) == errno.EAGAIN:
        return (
            f"this system allows no more threads or processes (ulimit -u): end others, or raise it; {GOES_ON}"
        )
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
