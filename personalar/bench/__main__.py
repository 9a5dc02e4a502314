"""`python -m personalar.bench NAME ...` runs the measurement in `personalar/bench/NAME.py`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from personalar.core.errors import told

MEASUREMENTS = ("decode", "memory", "train")
HELP = ("--help", "-h")


def description(name: str) -> str:
    """Return what a measurement says of itself; read, not imported, because that would load torch."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or ""


def overview() -> str:
    """Return the help of the command: one line for each measurement."""
    lines = [f"  {name:8}{description(name).splitlines()[0]}" for name in MEASUREMENTS]
    return "\n".join([
        "personalar.bench: measure speed and memory.\n",
        "  python -m personalar.bench NAME [setting=value ...]\n",
        "Required: NAME, one of\n",
        *lines,
        "\npython -m personalar.bench NAME --help says how it measures and what can be set.",
    ])  # fmt: skip


def main() -> None:
    """Entry point."""
    name, *arguments = sys.argv[1:] or [""]
    if name in HELP:
        print(overview())
        return
    if name not in MEASUREMENTS:
        raise SystemExit(f"personalar.bench: {name!r} is no measurement; allowed: {', '.join(MEASUREMENTS)}")
    if set(HELP) & set(arguments):
        print(description(name))
        return
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        raise SystemExit(f"personalar.bench: {flags[0]} is no setting; allowed: key=value, --help")
    with told("personalar.bench", kept="nothing is kept, and the same command measures afresh"):
        importlib.import_module(f"personalar.bench.{name}").main(arguments)


if __name__ == "__main__":
    main()
