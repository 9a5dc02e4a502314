"""Speed on this machine: `python experiments/benchmarks decode|train [setting=value ...]`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

MEASUREMENTS = ("decode", "train")
HELP = ("--help", "-h")


def description(name: str) -> str:
    """Return the docstring of a measurement, without importing torch."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or ""


def main(words: list[str]) -> None:
    """Run one measurement, or show its help."""
    name, arguments = (words or [""])[0], words[1:]
    if name in HELP:
        print("\n\n".join(description(each) for each in MEASUREMENTS))
    elif name not in MEASUREMENTS:
        raise SystemExit(f"benchmarks: unknown command {name!r}; allowed: {', '.join(MEASUREMENTS)}, --help")
    elif set(HELP) & set(arguments):
        print(description(name))
    else:
        try:
            importlib.import_module(f"benchmarks.{name}").main(arguments)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"benchmarks: {error}") from error


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(sys.argv[1:])
