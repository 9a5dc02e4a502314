"""MeanScores: the paper's order of means, every picture once, one process or several."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from processes import start

from personalar.core.measures import MEASURES, Measure
from personalar.scoring.metrics import MeanScores


def line(value: float, *, subject: str | None = None, seed: int = 0, scorer: str = "dino", **more) -> dict:
    common = {"stage": "embedding", "kind": "subject", "prompt": "a cat", "seed": seed, "scorer": scorer}
    return {**common, "value": value, **({"subject": subject} if subject else {}), **more}


def compute(lines: list[dict]) -> dict[str, float]:
    metric = MeanScores(list(MEASURES.values()))
    metric.update(lines)
    return {measure: round(float(value), 6) for measure, value in metric.compute().items()}


def test_images_first_then_subjects() -> None:
    lines = [line(0.2, subject="cat"), line(0.4, subject="cat", seed=1), line(0.9, subject="dog")]
    assert compute(lines) == {"dino": 0.6}
    assert compute([line(0.2), line(0.4, seed=1), line(0.9, seed=2)]) == {"dino": 0.5}


def test_questions_count_as_one_or_zero() -> None:
    lines = [line(0.3, scorer="clip_t", context_top1=True)]
    lines += [line(0.1, scorer="clip_t", seed=1, context_top1=False)]
    assert compute(lines) == {"clip_t": 0.2, "context_accuracy": 0.5}


def test_a_picture_scored_twice_counts_once_and_nothing_is_no_mean() -> None:
    assert compute([line(0.2), line(0.4, seed=1), line(0.4, seed=1)]) == {"dino": 0.3}
    assert compute([]) == {}
    assert compute([line(0.2, scorer="undeclared")]) == {}


def test_measures_are_those_declared() -> None:
    metric = MeanScores([Measure(name="sharpness", title="sharpness")])
    metric.update([line(0.2), line(3.0, scorer="sharpness"), line(5.0, scorer="sharpness", seed=1)])
    assert {name: float(value) for name, value in metric.compute().items()} == {"sharpness": 4.0}


def _process(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    metric = MeanScores(list(MEASURES.values()))
    share = {0: [line(0.2), line(0.4, seed=1)], 1: [line(0.4, seed=1), line(0.9, seed=2)]}
    if rank in share:  # the third process has no picture at all
        metric.update(share[rank])
    torch.save(metric.compute(), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_three_processes_agree_with_one(tmp_path: Path) -> None:
    where = (str(tmp_path / "store"), str(tmp_path))
    processes = [start(_process, rank, *where, log=tmp_path / "log") for rank in range(3)]
    for rank, process in enumerate(processes):
        process.join(100)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert {k: round(float(v), 6) for k, v in found.items()} == {"dino": 0.5}
