"""The package can be imported, and --help of all commands works, on systems other than Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from personalar.__main__ import COMMANDS

PROGRAM = Path(__file__).parents[1] / "fixtures" / "other_system.py"


def test_imports_and_help_on_windows(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for command in COMMANDS:
        assert f"python -m personalar.{command} " in done.stdout, command
