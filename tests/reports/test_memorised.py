"""Memorised pictures are counted once, by one rule, and shown wherever a run is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import make_run
from test_run_page import parse

from personalar.reports.comparison_page import compare_folders
from personalar.reports.comparison_table import markdown
from personalar.reports.memorised import copied_photo, is_memorised, memorised_share
from personalar.reports.run_page import write_report
from personalar.reports.summary import result_lines
from personalar.scoring.score_file import merge_scores, read_scores

BOUNDS = {"photos": {"dino": 0.7, "clip_i": 0.7, "dino_max": 0.8, "images": 5}}


def dino(nearest: float, **more: object) -> dict:
    return {"scorer": "dino", "value": 0.5, "nearest": nearest, **more}


def test_nearer_to_a_photo_than_the_closest_photos_to_each_other() -> None:
    assert [is_memorised(dino(value), BOUNDS) for value in (0.79, 0.8, 0.81)] == [False, False, True]
    assert is_memorised({"scorer": "clip_t", "nearest": 1.0}, BOUNDS) is None
    assert is_memorised({"scorer": "dino"}, BOUNDS) is None
    for photos in (None, {"dino": 0.7, "clip_i": 0.7, "images": 5}):  # a single photo, or a file by hand
        assert is_memorised(dino(1.0), {"photos": photos}) is None
    assert memorised_share([dino(0.9), dino(0.1), dino(0.2), {"scorer": "clip_t"}], BOUNDS) == 0.333333
    assert memorised_share([dino(1.0)], {}) is None


def test_only_a_photo_that_is_there_is_shown(tmp_path: Path) -> None:
    photo = make_run(tmp_path) / "references" / "4.png"
    photo = photo.rename(photo.with_name("04.png"))
    found = [copied_photo(tmp_path, dino(0.9, nearest_reference=which), BOUNDS) for which in (4, 9, -1)]
    assert found == [photo, None, None]
    assert copied_photo(tmp_path, dino(0.1, nearest_reference=4), BOUNDS) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; in the last stage of "copying", two of six pictures are memorised."""
    root = tmp_path_factory.mktemp("memorised")
    for name in ("copying", "learning"):
        run_dir = make_run(root / name)
        for path in (run_dir / "references").glob("?.png"):
            path.rename(path.with_name(f"0{path.name}"))
        record = json.loads((run_dir / "run.json").read_text())
        record["bounds"] |= BOUNDS
        (run_dir / "run.json").write_text(json.dumps(record))
        lines = [line for line in read_scores(run_dir / "scores.jsonl") if line["scorer"] == "dino"]
        copied = [line for line in lines if (line["stage"], line["kind"]) == ("transformer", "subject")][:2]
        for line in lines:
            near = 0.9 if name == "copying" and line in copied else 0.6
            line |= {"nearest": near, "nearest_reference": 3}
        merge_scores(run_dir / "scores.jsonl", lines)
    return root


def test_the_report_says_so_first_and_shows_the_photo(runs: Path) -> None:
    text = write_report(runs / "copying").read_text(encoding="utf-8")
    parse(text)
    claim = text.partition('class="claim"')[2].partition("</p>")[0]
    assert "<b>33%</b> of its pictures are memorised: more similar to a training photo than" in claim
    assert text.count("<small>memorised</small>") == 2 and ">Memorised</th>" in text
    other = write_report(runs / "learning").read_text(encoding="utf-8")
    assert "memorised</small>" not in other and "are memorised" not in other
    assert '<p class="name">Memorised</p><p class="value">0%</p>' in other


def test_the_table_of_a_run_and_the_comparison_say_so(runs: Path, tmp_path: Path) -> None:
    write_report(runs / "copying")
    head, *rows = result_lines(runs / "copying")
    assert rows[2].split()[1:][head.split().index("memorised")] == "0.333"
    records = compare_folders([runs], tmp_path)
    assert [record["memorised"] for record in records] == [0.333333, 0]
    assert "memorised" in markdown(records).splitlines()[0]
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    parse(page)
    assert page.count("<small>memorised</small>") == 2
