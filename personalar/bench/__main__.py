"""`python -m personalar.bench NAME ...` runs the measurement in `personalar/bench/NAME.py`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HELPERS = ("__init__", "__main__", "baseline", "decode_table", "random_weights", "roofline", "settings")


def main() -> None:
    """Entry point."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in names:
        raise SystemExit(f"personalar.bench: {name!r} is no measurement; allowed: {', '.join(names)}")
    try:
        importlib.import_module(f"personalar.bench.{name}").main(sys.argv[2:])
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"personalar.bench: {error}") from None


if __name__ == "__main__":
    main()
