"""Learn, look and draw in a browser on this machine: `python -m personalar.web [--port 7860]`.

Runs are separate processes, and continue when the page or its server ends. The page is protected by the
password in the environment variable PERSONALAR_WEB_PASSWORD, if it is set.
"""

from __future__ import annotations

import argparse
import os
import socket
from importlib import metadata
from pathlib import Path

from personalar.core.errors import user_errors

PASSWORD = "PERSONALAR_WEB_PASSWORD"


def check_installed() -> None:
    """Raise ModuleNotFoundError, with the command to install it, without Gradio 6 or newer."""
    try:
        version = metadata.version("gradio")
    except metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < 6:
        found = f" (this is {version})" if version != "0" else ""
        raise ModuleNotFoundError(f"the page needs Gradio 6{found}: pip install 'personalar[web]'")


def check_port(port: int) -> None:
    """Raise ValueError if the server cannot listen on `port`."""
    with socket.socket() as probe:
        # As the server does: otherwise a port is busy for a minute after its last connection.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))  # not 0.0.0.0: only for this machine
        except (OSError, OverflowError) as error:
            raise ValueError(f"port {port} cannot be used ({error}): choose another with --port") from None


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m personalar.web", description=__doc__)
    parser.add_argument("--port", type=int, default=7860, help="on this machine (127.0.0.1) only; 7860")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the runs; outputs")
    given = parser.parse_args(arguments)
    password = os.environ.pop(PASSWORD, None) or None  # not for the commands that the page starts
    with user_errors("personalar.web"):
        check_installed()
        check_port(given.port)
        from personalar.runs.web.server import serve

        print(f"http://127.0.0.1:{given.port}  (Ctrl-C ends the page; runs go on)", flush=True)
        serve(given.outputs, given.port, password)


if __name__ == "__main__":
    main()
