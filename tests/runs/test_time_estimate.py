"""The expected time of a run: scaled from a few blocks, without a trace in the network."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import personalar.runs.time_estimate
from personalar.core.png import save_sample
from personalar.core.types import Sample
from personalar.runs.pictures import all_requests
from personalar.runs.time_estimate import (
    first_blocks,
    float32_speedup,
    lines,
    rough,
    sampling_seconds,
    training_seconds,
)
from personalar.training.stage import resolve_stages

BLOCKS = 40


class Clock:
    """A clock that only the blocks move."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(nn.Module):
    """A block that takes 1 s forward, and 2 s backward."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += 1
        if torch.is_grad_enabled():
            x = x.clone()
            x.register_hook(lambda gradient: self.pass_back())
        return x

    def pass_back(self) -> None:
        self.clock.now += 2


def test_a_pass_is_scaled_from_the_blocks_within_the_budget(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(personalar.runs.time_estimate, "time", clock)
    blocks = nn.ModuleList(Slow(clock) for _ in range(BLOCKS))
    backend = SimpleNamespace(
        blocks=blocks, device="cpu", pad_id=0, embed=nn.Embedding(1, 4), forward=nn.Sequential(*blocks)
    )
    assert sampling_seconds(backend, budget=10) == BLOCKS * 1
    assert clock.now == 12  # twice the six blocks after which half of the budget is exceeded
    per_token = training_seconds(backend, budget=9)
    assert per_token * personalar.runs.time_estimate.TOKENS == pytest.approx(BLOCKS * 3)
    assert clock.now == 12 + 4 * 3


def test_the_network_is_unchanged_afterwards(tiny_backend) -> None:
    embeds = tiny_backend.embed(torch.arange(6)[None])
    before = tiny_backend.forward(embeds)
    with first_blocks(tiny_backend, 60.0, 1) as passed:
        tiny_backend.forward(embeds)
    assert passed.count == 1
    sampling_seconds(tiny_backend)
    training_seconds(tiny_backend)
    assert torch.equal(tiny_backend.forward(embeds), before)
    assert all(parameter.grad is None for parameter in tiny_backend.transformer.parameters())


def test_a_large_base_on_a_cpu_says_its_time_first(do_run, tmp_path: Path, capsys, monkeypatch) -> None:
    do_run(tmp_path / "small", "stage=embedding")
    assert "time on this CPU" not in capsys.readouterr().out
    monkeypatch.setattr(personalar.runs.time_estimate, "LARGE_BYTES", 0)
    do_run(tmp_path / "large", "stage=embedding")
    said = capsys.readouterr().out
    assert re.search(
        r"time on this CPU, measured: a picture at most \d+ s, a step of stage "
        r"embedding \d+ s \(of 4 steps\)\n"
        r"in total about \d+ s; .*\n(.*\n)*pictures base: ",
        said,
    )


def test_what_a_resumed_run_has_already_is_not_counted(session, tiny_backend, monkeypatch) -> None:
    for name in ("sampling_seconds", "training_seconds"):
        monkeypatch.setattr(personalar.runs.time_estimate, name, lambda backend: 1.0)
    monkeypatch.setattr(personalar.runs.time_estimate, "rough", lambda seconds: f"{seconds:.0f}")
    stage = resolve_stages(session.config.method, session.config.model.recipe)[0]

    def total() -> int:
        return int(lines(session, [stage], tiny_backend)[1].split()[3].rstrip(";"))

    whole = total()
    session.folder.update_stage(stage.name, checkpoint={"step": 3})
    resumed = total()
    assert whole > resumed > 0
    request = all_requests(session, "base")[0]
    save_sample(Sample(**vars(request), image=Image.new("RGB", (8, 8))), session.folder.path)
    assert resumed > total() > 0


def test_a_dtype_that_is_slow_here_is_said(do_run, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(personalar.runs.time_estimate, "LARGE_BYTES", 0)
    for speedup, is_said in ((3.2, True), (1.2, False)):
        monkeypatch.setattr(personalar.runs.time_estimate, "float32_speedup", lambda backend, x=speedup: x)
        do_run(tmp_path / str(speedup), "stage=embedding", "model.recipe.stages.embedding.steps=1")
        said = capsys.readouterr().out
        assert ("model.dtype=float32 would train about 3 times as fast" in said) is is_said


def test_float32_is_compared_with_the_dtype_of_the_base(tiny_backend, monkeypatch) -> None:
    ticks = iter((0.0, 2.0, 10.0, 15.0))
    monkeypatch.setattr(
        personalar.runs.time_estimate, "time", SimpleNamespace(perf_counter=lambda: next(ticks))
    )
    bfloat16 = SimpleNamespace(blocks=[copy.deepcopy(tiny_backend.blocks[0]).to(torch.bfloat16)])
    assert float32_speedup(bfloat16) == 2.5


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (89, "89 s"), (600, "10 min"), (6000, "1.7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert rough(seconds) == text
