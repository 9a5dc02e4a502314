"""`python -m personalar.bench NAME ...` runs the measurement in `personalar/bench/NAME.py`."""

from __future__ import annotations

import importlib
import sys

MEASUREMENTS = ("decode", "lossy", "memory", "train")


def main() -> None:
    """Entry point."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in MEASUREMENTS:
        raise SystemExit(f"personalar.bench: {name!r} is no measurement; allowed: {', '.join(MEASUREMENTS)}")
    try:
        importlib.import_module(f"personalar.bench.{name}").main(sys.argv[2:])
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"personalar.bench: {error}") from None


if __name__ == "__main__":
    main()
