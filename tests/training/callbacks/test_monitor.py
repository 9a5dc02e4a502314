"""What a run measures of itself, a loss that is no number, a sampling budget, and the count of operations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from personalar.bench.flops import peak_of, step_flops
from personalar.models.chameleon.transformer import TransformerConfig

SEVEN = {"sequences": 4, "tokens": 1100, "image_tokens": 1100, "choices": 65536}


def test_operations_at_7b_are_those_of_the_arithmetic() -> None:
    """4 N D for rows alone, 2 more per trained weight, attention counted with its backward pass."""
    rows = step_flops(TransformerConfig(), **SEVEN, trained=0)
    assert rows == pytest.approx(123.2e12, rel=0.02)
    qkv = step_flops(TransformerConfig(), **SEVEN, trained=1_610_612_736)
    assert qkv - rows == pytest.approx(2 * 1_610_612_736 * 4400)
    assert peak_of("NVIDIA H200") == 989e12 and peak_of("some CPU") is None


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
    assert {"watch/lr_weights", "watch/lr_identifier"} <= columns
    distances = [float(row["watch/v_distance"]) for row in rows if row.get("watch/v_distance")]
    assert distances[-1] > 0


def test_grids_beyond_their_share_of_the_time_are_left_out(do_run, tmp_path: Path) -> None:
    do_run(tmp_path, "stage=embedding", "scorer=none", "samples.time_share=0", "samples.grid_every_steps=1")
    made = sorted(path.name for path in (tmp_path / "grids").glob("embedding_*.png"))
    assert made == ["embedding_00001.png"]  # the first is always made


def test_the_bench_compares_in_one_run(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    from personalar.bench.train import main

    out = tmp_path / "bench.json"
    quick = ["experiment=quick", "trainer.threads=1", f"model.path={tiny_model_dir}"]
    main(["steps=5", "rounds=1", f"out={out}", *quick])
    result = json.loads(out.read_text())
    theirs = {"transformers Trainer, our network", "transformers Trainer, its own network"}
    assert set(result["seconds_per_step"]) == {"personalar", "by hand", *theirs}
    assert all(value > 0 for value in [*result["ours_over"].values(), result["tokens_per_s"]])
    said = capsys.readouterr().out
    assert "| by hand |" in said and "minutes for the 4 steps of this stage of a subject" in said
    assert result["stage_minutes"] == pytest.approx(4 / 60 * result["seconds_per_step"]["personalar"])
    assert result["subject_minutes"] > result["stage_minutes"]
    assert f"{result['subject_minutes']:.1f} minutes per subject end to end" in said
    assert torch.__version__ == result["torch"] and all(v > 0 for v in result["peak_memory_gb"].values())
    main(["steps=4", "rounds=1", "end_to_end=false", f"out={out}", "method=lora", *quick])
    assert "| transformers Trainer, its own network | failed: ValueError: " in capsys.readouterr().out
    assert set(json.loads(out.read_text())["ours_over"]) == {"by hand", "transformers Trainer, our network"}
    with pytest.raises(ValueError, match="must be more than the 3 that warm up"):
        main(["steps=3"])
    with pytest.raises(
        ValueError, match="bench_stage=x is no stage of this method; allowed: embedding, transf"
    ):
        main(["bench_stage=x", "rounds=1", "end_to_end=false", *quick])
    with pytest.raises(ValueError, match="end_to_end=maybe must be true or false"):
        main(["end_to_end=maybe"])
    with pytest.raises(ValueError, match=r"(?s)the whole run failed.*subject.path=nowhere"):
        main(["+subject=folder", "subject.path=nowhere", "subject.noun=cat", *quick])
