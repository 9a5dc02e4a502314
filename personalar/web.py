"""Learn, look and draw in a browser on this machine: `python -m personalar.web [--port 7860]`.

Runs are separate processes, and continue when the page or its server ends. The page is protected by the
password in the environment variable PERSONALAR_WEB_PASSWORD, if it is set.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from personalar.core.errors import user_errors

PASSWORD = "PERSONALAR_WEB_PASSWORD"


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m personalar.web",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=7860, help="on this machine (127.0.0.1) only")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the runs")
    given = parser.parse_args(arguments)
    password = os.environ.pop(PASSWORD, None) or None  # not for the commands that the page starts
    with user_errors("personalar.web"):
        try:
            from personalar.runs.web.server import serve

            print(f"http://127.0.0.1:{given.port}  (Ctrl-C ends the page; runs go on)", flush=True)
            serve(given.outputs, given.port, password)
        except ImportError as error:
            raise ModuleNotFoundError(f"{error}: pip install 'personalar[web]'") from None


if __name__ == "__main__":
    main()
