"""Monitoring of a run, and the time budget of its sample grids."""

from __future__ import annotations

import csv
from pathlib import Path


def test_curves_of_a_run(finished_run: Path) -> None:
    rows = [
        row
        for path in (finished_run / "logs" / "transformer").rglob("metrics.csv")
        for row in csv.DictReader(path.open())
    ]
    columns = {name for row in rows for name, value in row.items() if value}
    assert {
        "watch/gradient_norm",
        "watch/tokens_per_s",
        "watch/peak_memory_gb",
        "watch/v_distance",
    } <= columns
    assert {"lr-AdamW/weights", "lr-AdamW/identifier"} <= columns
    distances = [float(row["watch/v_distance"]) for row in rows if row.get("watch/v_distance")]
    assert distances[-1] > 0


def test_grids_beyond_their_share_of_the_time_are_left_out(do_run, tmp_path: Path) -> None:
    do_run(tmp_path, "stage=embedding", "scorer=none", "samples.time_share=0", "samples.grid_every_steps=1")
    made = sorted(path.name for path in (tmp_path / "grids").glob("embedding_*.png"))
    assert made == ["embedding_00001.png"]  # the first is always made
