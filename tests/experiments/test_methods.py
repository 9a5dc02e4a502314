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
    first, second = capsys.readouterr().out.splitlines()[2:]
    rows = load_file(finished_run / "stages" / "embedding" / "concept" / "learned_embeds.safetensors")
    assert first.startswith("| textual inversion (stage 1) | 1 |")
    assert f"| {sum(row.numel() for row in rows.values())} |" in first.replace(",", "")
    assert (
        second.startswith("| two stages | 1 |") and "| – |" in second
    )  # the row that others are compared with


@pytest.mark.parametrize("row", run_all.ROWS)
def test_every_row_composes(row: str, tmp_path: Path) -> None:
    from conftest_run import compose_config

    words = [word.format(first=tmp_path, proxies=tmp_path) for word in run_all.ROWS[row]]
    assert compose_config("+subject=cat", "model=nano", *words).selected
    assert any(name.startswith(f"{row}/") for name in run_all.TITLES)
