"""Files that documented commands write are ignored by git."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = re.compile(
    r"(?:\bout|benchmark\.path|hydra\.run\.dir|model\.path|model\.vq_path)=([a-z_]+)(?=[/\s`\"']|$)"
)


@pytest.mark.skipif(not (ROOT / ".gitignore").is_file(), reason="no checkout")
def test_git_passes_over_what_commands_leave() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "conf").rglob("*.yaml")]
    named = {name for page in pages for name in PLACES.findall(page.read_text())}
    defaults = {"outputs", "sweeps", "samples", "comparison"}  # run.yaml, sample.yaml, compare.py
    assert {"exported", "data", "weights"} <= named
    ignored = (ROOT / ".gitignore").read_text().split()
    shown = [name for name in named | defaults if not any(fnmatch(f"/{name}/", line) for line in ignored)]
    assert shown == []
