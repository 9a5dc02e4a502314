"""Errors that end a command: user errors become one line with a fix, bugs keep their traceback.

HYDRA_FULL_ERROR=1 shows the traceback of every error.
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
"""Packages whose ValueErrors are messages for the user; those of other packages are bugs."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, file too large for the disk
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
CONNECT = "connect to the network, and unset HF_HUB_OFFLINE if it is set"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "socket")
"""Packages whose errors mean that the network failed."""
OCCUPIED = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY)
GOES_ON = "finished results are kept; repeat the command to continue"
RESUMABLE = ("personalar.run", "personalar.evaluate", "personalar.sample")
"""Commands that resume when they are repeated. Messages of the others say "repeat the command" instead of
`GOES_ON`."""


@contextmanager
def user_errors(command: str) -> Iterator[None]:
    """Run the block; turn a user error into one line and exit code 1, and Ctrl-C into exit code 130.

    Args:
        command: for the message, for example "personalar.run".

    Raises:
        SystemExit: a user error.
        Exception: a bug, or any error if HYDRA_FULL_ERROR=1.
    """
    try:
        escape_unencodable_output()
        check_working_directory(sys.argv[1:])
        yield
        sys.stdout.flush()  # here, so that a closed pipe is reported below and not at exit
    except KeyboardInterrupt:
        print(_for_command(f"{command}: interrupted; {GOES_ON}", command), file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdout_is_closed():
            # Python flushes stdout once more at exit, which would raise the same error again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            text: str | None = f"the output pipe was closed by its reader (head, tee): {GOES_ON}"
        else:
            text = user_message(error)
        if text is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"{command}: {printable(_for_command(text, command))}") from None


def _for_command(text: str, command: str) -> str:
    """Return a message for `command`, without `GOES_ON` if it would start again."""
    return text if command in RESUMABLE else text.replace(GOES_ON, "repeat the command")


def escape_unencodable_output() -> None:
    """Print characters that the terminal cannot encode as backslash escapes, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Return `text` with control characters and undecodable bytes escaped; line breaks are kept."""
    safe = []
    for character in text:
        if is_control(character) and character != "\n":
            character = character.encode("unicode_escape").decode()
        safe.append(character)
    return "".join(safe)


def is_control(character: str) -> bool:
    """Return whether `character` is a control character, or a surrogate that stands for an invalid byte."""
    return unicodedata.category(character) in ("Cc", "Cs")


def check_working_directory(arguments: Sequence[str]) -> None:
    """Check the working directory and the command line.

    Raises:
        ValueError: the directory was deleted, or a name contains invalid UTF-8 or control characters.
    """
    try:
        where = os.getcwd()
    except OSError:
        raise ValueError("the working directory was deleted: change to another one with cd") from None
    for what, text in (("the working directory", where), *(("the argument", word) for word in arguments)):
        if any(is_control(character) and character not in "\n\r\t" for character in text):
            raise ValueError(
                f"{what} {printable(text)[:200]!r} contains invalid UTF-8 or control characters: rename the "
                "file or folder (mv), or use a symbolic link with a plain name"
            )


def stdout_is_closed() -> bool:
    """Return whether standard output is a pipe whose reader has ended."""
    # BrokenPipeError alone does not show it: a socket to another process raises the same.
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call on this system, or no real file
        return False


def is_network(error: BaseException) -> bool:
    """Return whether `error` means that the network failed."""
    # By name, because the library differs between versions of the hub's client, and may not be loaded yet.
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in NETWORK


@contextmanager
def hub_errors(what: str, advice: str) -> Iterator[None]:
    """Turn an error of the Hugging Face hub in the block into one sentence.

    Args:
        what: the repository, for the message.
        advice: what else the user can do; ends the message.

    Raises:
        FileNotFoundError: the hub refuses the repository, or cannot be reached.
    """
    from huggingface_hub import errors

    reasons: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"asks you to accept its conditions: accept them there, then {LOGIN}"),
        (errors.RepositoryNotFoundError, f"does not exist, or you may not see it: check it, or {LOGIN}"),
        (errors.RevisionNotFoundError, "has no such branch, tag or commit: choose another revision"),
        (errors.LocalEntryNotFoundError, f"is not on this machine, and the hub cannot be reached: {CONNECT}"),
        (errors.HFValidationError, "is no name of a repository"),
    ]
    try:
        yield
    except Exception as error:
        reason = next((reason for kind, reason in reasons if isinstance(error, kind)), None)
        if reason is None and isinstance(error, errors.HfHubHTTPError):
            refused = error.response is not None and error.response.status_code in (401, 403)
            token = f"your token may not read it, or not write to it for an upload: use another, or {LOGIN}"
            reason = f"is refused: {token if refused else str(error).splitlines()[0]}"
        elif reason is None and is_network(error):
            reason = f"cannot be reached: {user_message(error)}"
        if reason is None:
            raise
        raise FileNotFoundError(f"{what} {reason}; or {advice}") from error


def user_message(error: BaseException) -> str | None:
    """Return a message for the user with the cause of `error` and a fix; None if it is a bug."""
    if is_network(error):
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the network failed ({reason}): {GOES_ON}; HF_HUB_OFFLINE=1 uses the files on this machine"
    # Before the test for user errors, because many of these are raised inside of libraries.
    if isinstance(error, OSError) and error.errno != errno.EAGAIN:
        return _system(error)
    is_user_error = isinstance(error, ValueError | FloatingPointError | ModuleNotFoundError)
    if is_user_error and raised_by(error) in OURS:
        return str(error)
    # Lightning's messages about callbacks; by name, because it may not be loaded.
    early = isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned")
    if early or type(error).__name__ == "MisconfigurationException":
        return str(error)
    # fork raises OSError with EAGAIN; Python's threading raises a RuntimeError with this text.
    if "can't start new thread" in str(error) or getattr(error, "errno", None) == errno.EAGAIN:
        return (
            "this system allows no more threads or processes (ulimit -u): end others, or raise the limit; "
            f"{GOES_ON}"
        )
    if peer_process_ended(error):
        reason = str(error).strip().splitlines()[0][:160]
        return f"another process of this run has ended ({reason}): see its own message; {GOES_ON}"
    if out_of_memory(error):
        reason = (str(error).strip().splitlines() or ["all memory is in use"])[0][:120]
        return (
            f"not enough memory ({reason}): {GOES_ON}; reduce it with memory.gigabytes=N (the free memory), "
            "memory.recompute=true, or a sharded trainer (trainer=zero3, trainer=zero3_offload); see "
            "docs/memory.md"
        )
    return None


def peer_process_ended(error: BaseException) -> bool:
    """Return whether another process of a distributed run has ended."""
    # By name, because torch may not be loaded yet. gloo has no class of its own and raises RuntimeError.
    backend = type(error).__name__ in ("DistBackendError", "DistNetworkError")
    return backend or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the host or of a GPU was exhausted."""
    torch = sys.modules.get("torch")  # not imported here: an error before torch is loaded is not torch's
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def raised_by(error: BaseException) -> str:
    """Return the top-level package whose code raised `error`; "" if unknown."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    module = frames[-1][0].f_globals
    spec = module.get("__spec__")  # under `python -m`, __name__ of the command's module is "__main__"
    return (spec.name if spec is not None else module.get("__name__", "")).split(".")[0]


def _system(error: OSError) -> str:
    """Return the message for an error of the operating system."""
    if error.errno is None:
        return str(error)  # raised with a message by this package or a library
    where = error.filename2 or error.filename  # the second is the target of a rename
    what = str(where) if where else "a file"
    reason = os.strerror(error.errno)
    if error.errno in FULL:
        return f"{what} could not be written ({reason}): {GOES_ON} once there is space"
    if error.errno in FORBIDDEN:
        return (
            f"{what} cannot be written or read ({reason}): change its permissions, or choose another folder "
            f"(hydra.run.dir=DIR for a run, out=DIR elsewhere); {GOES_ON}"
        )
    if error.errno in OCCUPIED:
        return (
            f"{what} is in the way ({reason}): move it, or choose another folder "
            "(hydra.run.dir=DIR for a run, out=DIR elsewhere)"
        )
    return f"{what}: {reason}; {GOES_ON} once that is fixed"
