"""The table of scores on a page: columns with values, rows by name, and its formats."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic_run import make_run

from personalar.core.measures import MEASURES
from personalar.reports.run_page import write_report
from personalar.reports.score_table import (
    cell,
    duration,
    memory,
    number,
    percent,
    score_columns,
    score_rows,
)
from personalar.reports.summary import stage_titles, write_summary


def test_photographs_have_no_column_of_dashes(tmp_path: Path) -> None:
    for name, rendered in (("photos", False), ("world", True)):
        run = make_run(tmp_path / name, rendered=rendered)
        rows = score_rows(write_summary(run), stage_titles(json.loads((run / "run.json").read_text())))
        columns = score_columns(MEASURES, [row["values"] for row in rows])
        assert ("fidelity" in columns) is rendered and ("class_drift" in columns) is rendered
        assert {"dino", "clip_i", "clip_t"} <= set(columns) and not {"seconds", "pres"} & set(columns)
        titles = [row["title"] for row in rows if not row["bound"]]
        assert titles == ["After stage 2", "After stage 1", "Base model", "Best text description"]
        assert ("Fidelity</th>" in write_report(run).read_text()) is rendered


def test_words_for_numbers() -> None:
    assert (number(None), number(-0.1234), number(0.5, 2, sign=True)) == ("–", "−0.123", "+0.50")
    assert number(-0.0004, 3, sign=True) == "+0.000"
    assert [duration(value) for value in (None, 31.5, 214.6, 7300)] == ["–", "0:00:32", "0:03:35", "2:01:40"]
    assert (percent(None), percent(0.955)) == ("–", "96%")
    assert (memory(None), memory(1.31e9)) == ("–", "1.3 GB")
    assert [cell(0.25, name) for name in ("memorised", "class_drift", "dino")] == ["25%", "+0.250", "0.250"]
    assert cell(12.4, "seconds") == "12" and cell(None, "memorised") == "–"
