"""The console command: `personalar NAME ...` is the same as `python -m personalar.NAME ...`."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path

from personalar import __version__

COMMANDS = ("run", "sample", "evaluate", "compare", "export", "push", "doctor", "web")


def main() -> None:
    """Entry point."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print("usage: personalar NAME ...\n       personalar NAME --help | --version\n")
        for command in COMMANDS:
            # The start of the module's docstring, read as text: importing all modules would take seconds.
            source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
            print(f"  {command:10}{source[3:].partition(':')[0]}")
        return
    if name == "--version":
        print(f"personalar {__version__}")
        return
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise SystemExit(f"personalar: unknown command {name!r}{meant}\nallowed: {', '.join(COMMANDS)}")
    # Hydra and argparse read sys.argv, so it must look as if the module had been started directly.
    sys.argv = [f"personalar.{name}", *sys.argv[2:]]
    # Imported only now: most commands load Hydra, and `personalar --help` must be fast.
    importlib.import_module(f"personalar.{name}").main()


if __name__ == "__main__":
    main()
