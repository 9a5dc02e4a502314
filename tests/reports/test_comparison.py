"""Comparisons: rows of runs, paired differences, the Pareto front, and one page that fetches nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from synthetic_run import PROMPTS, make_run
from test_run_page import parse

from personalar.compare import main
from personalar.core.types import PromptSpec
from personalar.reports.comparison import (
    Row,
    compare_rows,
    find_runs,
    pareto_front,
    read_states,
    rows_of_runs,
    table,
)
from personalar.reports.comparison_page import compare_folders, marks_of, read_pictures
from personalar.reports.comparison_table import markdown, verdicts
from personalar.scoring.score_file import merge_scores, read_scores


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """A folder of two runs of the same subject; the second draws 0.1 DINO nearer to it."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "plain", seeds=(0, 1))
    make_run(root / "better", seeds=(0, 1))
    path = root / "better" / "scores.jsonl"
    merge_scores(
        path,
        [
            {**line, "value": line["value"] + 0.1}
            for line in read_scores(path)
            if line["scorer"] == "dino" and line["stage"] == "transformer"
        ],
    )
    return root


def test_a_row_for_each_run_in_its_last_stage(two_runs: Path) -> None:
    rows = rows_of_runs(find_runs(two_runs), two_runs)
    assert [row.title for row in rows] == ["better", "plain"]
    assert {state.stage for row in rows for state in row.states} == {"transformer"}
    better, plain = table(rows, rows[1])
    assert better["dino"] == pytest.approx(plain["dino"] + 0.1)
    assert better["fidelity"] == pytest.approx(plain["fidelity"] + 0.25)  # floor .5, ceiling .9
    low, high = better["dino_interval"]
    assert low < better["dino"] < high and better["images"] == 2 * len(PROMPTS)
    assert better["versus"]["likeness"]["mean"] == pytest.approx(0.25)
    assert better["versus"]["likeness"]["low"] > 0 and better["versus"]["clip_t"]["mean"] == 0
    assert plain["versus"] == {}
    (sentence,) = verdicts([better, plain])
    assert "better against plain: likeness +0.250" in sentence
    assert "CLIP-T +0.000 [+0.000, +0.000], p=1.000 (not significant)" in sentence
    assert "| better | 1 | 12 | " in markdown([better, plain])


def test_a_run_without_its_last_stage_is_titled_so(two_runs: Path, tmp_path: Path) -> None:
    failed = make_run(tmp_path / "failed", stages=("base",))
    assert [row.title for row in rows_of_runs([two_runs / "plain", failed])] == [
        (two_runs / "plain").as_posix(), f"{failed.as_posix()} (base)"
    ]  # fmt: skip


def test_a_single_run_compares_its_stages(two_runs: Path) -> None:
    rows = rows_of_runs(find_runs(two_runs / "plain"))
    assert [row.title for row in rows] == [
        "Base model", "Best text description", "After stage 1", "After stage 2"
    ]  # fmt: skip


def test_only_pictures_that_both_drew_are_compared(two_runs: Path, tmp_path: Path) -> None:
    few = make_run(tmp_path / "few", prompts=PROMPTS[:2])
    rows = [Row(title=name, states=(read_states(run)[("transformer", "subject")],))
            for name, run in (("few", few), ("plain", two_runs / "plain"))]  # fmt: skip
    found = compare_rows(*rows, "dino")
    assert found is not None and abs(found["mean"]) < 0.1
    other = make_run(tmp_path / "dog", noun="dog")
    dog = Row(title="dog", states=(read_states(other)[("transformer", "subject")],))
    assert compare_rows(dog, rows[1], "dino") is None  # another subject: nothing in common


def judged_by(run: Path, **judges: str) -> Path:
    """Let a run's record name other judges."""
    record = json.loads((run / "run.json").read_text())
    record["scorers"] = {**record["scorers"], **judges}
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.fixture
def rejudged(two_runs: Path, tmp_path: Path) -> Path:
    """The two runs, and copies of the better one by the same judges in other places, and by others."""
    for name in ("plain", "better"):
        shutil.copytree(two_runs / name, tmp_path / "runs" / name)
    others = {"moved": {"dino": "/elsewhere#ba9876543210", "clip": "owner/clip@main#0123456789ab"},
              "other dino": {"dino_preprocessing": "shorter side 256, bicubic"},
              "other text": {"clip_text": "prompt"},
              "others": {"dino": "owner/dino#aaaaaaaaaaaa", "clip": "owner/clip#bbbbbbbbbbbb"}}  # fmt: skip
    for name, judges in others.items():
        judged_by(shutil.copytree(two_runs / "better", tmp_path / "runs" / name), **judges)
    return tmp_path / "runs"


def test_scores_of_different_judges_are_not_compared(rejudged: Path) -> None:
    rows = {row.title: row for row in rows_of_runs(find_runs(rejudged), rejudged)}
    records = {record["row"]: record for record in table(list(rows.values()), rows["plain"])}
    compared = {name: sorted(record["versus"]) for name, record in records.items()}
    everything = ["balance", "clip_t", "likeness"]
    assert compared == {
        "plain": [], "better": everything, "moved": everything, "others": [],
        "other dino": ["clip_t"], "other text": ["likeness"],
    }  # fmt: skip
    assert [name for name, record in records.items() if record["other_judges"]] == [
        "other dino", "other text", "others"
    ]  # fmt: skip
    assert records["others"]["seconds"] == records["plain"]["seconds"]
    assert (records["others"]["against"], records["plain"]["against"]) == ("plain", None)
    said = {text.partition(" against plain: ")[0]: text for text in verdicts(list(records.values()))}
    assert "p=" not in said["others"] and "likeness, CLIP-T, likeness × CLIP-T not compared" in said["others"]
    assert "CLIP-T +0.000" in said["other dino"] and "likeness, likeness × CLIP-T not" in said["other dino"]
    assert "| others (other scorers) | 1 | 12 |" in markdown(list(records.values()))
    assert [mark.label for mark in marks_of(list(records.values()))[0]] == ["better", "moved", "plain"]


def test_a_row_of_runs_with_different_judges_is_not_compared(rejudged: Path) -> None:
    """A benchmark's row holds a run for each subject."""
    read = {name: read_states(rejudged / name)[("transformer", "subject")] for name in ("plain", "others")}
    mixed = Row(title="mixed", states=tuple(read.values()))
    assert compare_rows(mixed, Row(title="plain", states=(read["plain"],)), "dino") is None


def test_runs_without_scores_have_no_judges(two_runs: Path, tmp_path: Path) -> None:
    silent = make_run(tmp_path / "silent", scored=False)
    rows = rows_of_runs([two_runs / "plain", judged_by(silent, dino="none", clip="none")])
    records = table(rows)
    assert [record["other_judges"] for record in records] == [[], []] and verdicts(records) == []


def test_page_and_terminal_say_that_judges_differ(rejudged: Path, tmp_path: Path, capsys) -> None:
    main([str(rejudged / "plain"), str(rejudged / "others"), "--out", str(tmp_path / "out")])
    pages = [(tmp_path / "out" / f"comparison.{kind}").read_text() for kind in ("md", "html")]
    for text in (capsys.readouterr().out, *pages):
        assert "not compared, because the pictures were scored by other scorers" in text and "p=" not in text
        assert "(other scorers)" in text


def test_an_unscored_row_leaves_the_plot_of_the_others(two_runs: Path, tmp_path: Path) -> None:
    silent = make_run(tmp_path / "silent", scored=False)
    marks, title = marks_of(table(rows_of_runs([two_runs / "plain", two_runs / "better", silent])))
    assert title == "fidelity" and len(marks) == 2


def test_the_pareto_front() -> None:
    assert pareto_front([(1, 1), (2, 0), (0, 2), (1, 0), (0, 0), (1, 1)]) == [(0, 2), (1, 1), (2, 0)]
    assert pareto_front([]) == []


def test_the_page_is_one_file_with_lazy_pictures(two_runs: Path, tmp_path: Path) -> None:
    compare_folders([two_runs], tmp_path)
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    page = parse(text)
    assert page.images == 2 * len(PROMPTS)  # six of the twelve prompts and seeds, two runs
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"url\(|@import|<link|https?://", text)
    assert "<small>[" in text and "<svg" in text
    lines = (tmp_path / "comparison.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["better", "plain"]
    assert Image.open(tmp_path / "comparison.png").width > 300
    assert (tmp_path / "comparison.md").read_text().startswith("# Comparison")


def test_pictures_stay_on_the_disk_until_they_are_chosen(two_runs: Path) -> None:
    (row,) = rows_of_runs([two_runs / "plain"])[-1:]
    found = list(read_pictures(row).values())
    assert len(found) == 2 * len(PROMPTS) and all(path.is_file() for path, _ in found)


def test_the_subject_stands_in_its_place_of_the_prompt_only(tmp_path: Path) -> None:
    spec = PromptSpec(text="{} as the subject of a painting", category="plain")
    make_run(tmp_path / "run", prompts=(spec,))
    compare_folders([tmp_path / "run"], tmp_path / "out")
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "⟨cat⟩ as the subject of a painting" in text


def test_the_command_prints_the_table_and_its_mistakes(two_runs: Path, tmp_path: Path, capsys) -> None:
    main([str(two_runs / "plain"), str(two_runs / "better"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| subjects | images | fidelity | CLIP-I |" in printed and "comparison.html" in printed
    with pytest.raises(SystemExit, match=r"contains no run \(no run\.json in it or its subfolders\)"):
        main([str(tmp_path / "nowhere"), "--out", str(tmp_path)])


@pytest.mark.parametrize("count", [1, 2])
def test_runs_without_a_result_are_told(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "run.json").write_text('{"format_version": 1}')
    with pytest.raises(SystemExit, match=r"no run with results in .*/0.*: finish one with"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
