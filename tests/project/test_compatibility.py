"""Every row of the table in docs/compatibility.md refers to an existing test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 50
    for file, name in NAMED:
        found = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(file)]
        assert any(f"\ndef {name}(" in text for text in found), f"{file}::{name}"


def test_every_row_has_a_test_and_an_oracle() -> None:
    tables = TEXT.split("## Results of the upstream runs")[0]
    rows = [
        line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| upstream b")
    ]
    rows = [row for row in rows if not row.startswith("| behaviour")]
    assert len(rows) > 45
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4 and "::" in cells[1] and cells[2] and cells[3] == "pass", row
