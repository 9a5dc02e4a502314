"""Monitoring of a run, and the time budget of its sample grids."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from personalar.concepts.adapters.identifier import Identifier, word_norms
from personalar.core.console import Reporter
from personalar.training.callbacks.monitor import StepWatch


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
        "watch/v_norm_ratio",
    } <= columns
    assert {"lr-AdamW/weights", "lr-AdamW/identifier"} <= columns
    distances = [float(row["watch/v_distance"]) for row in rows if row.get("watch/v_distance")]
    assert distances[-1] > 0


def test_a_norm_outside_the_range_of_words_is_noted_once(tiny_backend, capsys: pytest.CaptureFixture) -> None:
    backend, norms = tiny_backend, word_norms(tiny_backend)
    rows = Identifier(tokens={"[V]": backend.reserved_ids[0]}, rows=torch.ones(1, 32) * norms.max() / 32**0.5)
    module: Any = SimpleNamespace(
        network=SimpleNamespace(backend=backend),
        identifier=rows,
        stage=SimpleNamespace(name="embedding"),
        context=SimpleNamespace(reporter=Reporter()),
        logged={},
        log_dict=lambda values, **_: module.logged.update(values),
    )
    trainer: Any = SimpleNamespace(world_size=1, global_step=0, strategy=None)
    watch = StepWatch()
    watch.on_train_start(trainer, module)
    batch = {"ids": torch.zeros(1, 4, dtype=torch.int64)}
    for step, factor in enumerate((0.9, 2.0, 2.0), 1):
        trainer.global_step = step
        rows.rows.data.mul_(factor)
        watch.on_train_batch_end(trainer, module, None, batch, step)
    assert module.logged["watch/v_norm_ratio"] == pytest.approx(float(3.6 * norms.max() / norms.mean()))
    said = capsys.readouterr().out
    assert said.count("note: [V] has norm") == 1 and "at step 2 of stage embedding" in " ".join(said.split())


def test_grids_beyond_their_share_of_the_time_are_left_out(do_run, tmp_path: Path) -> None:
    do_run(tmp_path, "stage=embedding", "scorer=none", "samples.time_share=0", "samples.grid_every_steps=1")
    made = sorted(path.name for path in (tmp_path / "grids").glob("embedding_*.png"))
    assert made == ["embedding_00001.png"]  # the first is always made
