"""The table of methods: one row per stage of the finished runs, with the number of learned values."""

from __future__ import annotations

from pathlib import Path

import pytest
from methods import run_all
from safetensors.torch import load_file


def test_rows_of_finished_runs(finished_run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "two_stages").mkdir()
    (tmp_path / "two_stages" / "cat-0").symlink_to(finished_run)
    monkeypatch.setattr("sys.argv", ["run_all.py", str(tmp_path), "--jobs", "0"])
    run_all.main()
    printed = capsys.readouterr().out
    base, *_, first, second = printed.partition("\n\n")[0].splitlines()[2:]
    rows = load_file(finished_run / "stages" / "embedding" / "concept" / "learned_embeds.safetensors")
    assert base.startswith("| base alone | 1 |") and "| 0 | 0 |" in base  # nothing learned, no training
    assert first.startswith("| textual inversion (stage 1) | 1 |")
    assert f"| {sum(row.numel() for row in rows.values())} |" in first.replace(",", "")
    assert (
        second.startswith("| two stages | 1 |") and "| – |" in second
    )  # the row that others are compared with
    assert "| cat |" in printed.partition("\n\n")[2]  # the fidelity by subject
    # Without the run folders, as on another machine: the same table, and the run counts as finished.
    (tmp_path / "two_stages" / "cat-0").unlink()
    run_all.main()
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(run_all, "run_one", lambda out, row, job: pytest.fail(f"{row} {job} runs again"))
    once = ["--rows", "two_stages", "--subjects", "cat", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", ["run_all.py", str(tmp_path), *once])
    run_all.main()


def test_difference_is_of_the_same_subjects_and_seeds() -> None:
    def line(row: str, subject: str, seed: int, fidelity: float) -> dict:
        known = {"fidelity": fidelity, "clip_t": 0.5, "numbers": 7, "train_seconds": 1}
        return {"row": f"{row}/transformer", "subject": subject, "seed": seed, **known}

    ours = [line("one_stage", "cat", 0, 0.7), line("one_stage", "cat", 1, 0.8)]
    reference = [line("two_stages", "cat", 0, 0.9), line("two_stages", "cat", 1, 0.9)]
    unrelated = line("two_stages", "dog", 0, 0.1)
    printed = run_all.markdown([*reference, unrelated, *ours]).splitlines()[-1]
    assert printed.startswith("| one stage | 2 | .75 [.70, .80] | -.15 [-.20, -.10] |")


@pytest.mark.parametrize("row", run_all.ROWS)
def test_every_row_composes(row: str, tmp_path: Path) -> None:
    from conftest_run import compose_config

    words = [word.format(first=tmp_path, proxies=tmp_path) for word in run_all.ROWS[row]]
    assert compose_config("+subject=cat", "model=nano", *words).selected
    assert any(name.startswith(f"{row}/") for name in run_all.TITLES)
