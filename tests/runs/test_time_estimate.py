"""The expected time of a run: scaled from a few blocks, without a trace in the network."""

from __future__ import annotations

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
from personalar.runs.pictures import all_requests, grid_requests
from personalar.runs.time_estimate import (
    first_blocks,
    lines,
    pictures_left,
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


def test_a_pass_is_scaled_from_two_blocks(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(personalar.runs.time_estimate, "time", clock)
    blocks = nn.ModuleList(Slow(clock) for _ in range(BLOCKS))
    backend = SimpleNamespace(
        blocks=blocks, device="cpu", pad_id=0, embed=nn.Embedding(1, 4), forward=nn.Sequential(*blocks)
    )
    assert sampling_seconds(backend) == BLOCKS * 1
    assert clock.now == 2 * 2  # the first pass warms up
    per_token = training_seconds(backend)
    assert per_token * personalar.runs.time_estimate.TOKENS == pytest.approx(BLOCKS * 3)
    assert clock.now == 2 * 2 + 2 * 3


def test_the_network_is_unchanged_afterwards(tiny_backend) -> None:
    embeds = tiny_backend.embed(torch.arange(6)[None])
    before = tiny_backend.forward(embeds)
    with first_blocks(tiny_backend) as outputs:
        tiny_backend.forward(embeds)
    assert len(outputs) == 2
    sampling_seconds(tiny_backend)
    training_seconds(tiny_backend)
    assert torch.equal(tiny_backend.forward(embeds), before)
    assert all(parameter.grad is None for parameter in tiny_backend.transformer.parameters())


def test_a_large_base_on_a_cpu_says_its_time_first(do_run, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(personalar.runs.time_estimate, "LARGE_BYTES", 0)
    do_run(tmp_path, "stage=embedding")
    said = capsys.readouterr().out
    assert re.search(
        r"time on this CPU, measured: a picture at most \d:\d\d:\d\d, a step of stage "
        r"embedding \d:\d\d:\d\d \(of 4 steps\)\n"
        r"in total about \d:\d\d:\d\d; .*\n(.*\n)*pictures base: ",
        said,
    )


@pytest.fixture
def total(session, tiny_backend, monkeypatch):
    """A function for the expected seconds of stages; a code of a picture and a trained token take 1 s."""
    for name in ("sampling_seconds", "training_seconds"):
        monkeypatch.setattr(personalar.runs.time_estimate, name, lambda backend: 1.0)
    monkeypatch.setattr(personalar.runs.time_estimate, "duration", lambda seconds: f"{seconds:.0f}")
    return lambda *stages: int(lines(session, list(stages), tiny_backend)[1].split()[3].rstrip(";"))


def test_what_a_resumed_run_has_already_is_not_counted(session, total) -> None:
    stage = resolve_stages(session.config.method, session.config.model.recipe)[0]
    whole = total(stage)
    session.folder.update_stage(stage.name, checkpoint={"step": 3})
    resumed = total(stage)
    assert whole > resumed > 0
    request = all_requests(session, "base")[0]
    for one in (each for each in all_requests(session, "base") if each.prompt == request.prompt):
        save_sample(Sample(**vars(one), image=Image.new("RGB", (8, 8))), session.folder.path)
    assert resumed > total(stage) > 0


def test_only_pictures_that_are_drawn_are_counted(session) -> None:
    """The run of the fixture has the kinds subject, class and description; its stage 1 learns embeddings."""
    kinds = {stage: [r.kind for r in all_requests(session, stage)] for stage in ("base", "embedding")}
    base, subject = kinds["base"], kinds["embedding"].count("subject")
    assert pictures_left(session, "base") == len(base) - base.count("class")  # the same prompts and seeds
    assert pictures_left(session, "embedding") == subject < len(kinds["embedding"])
    assert pictures_left(session, "transformer") == len(kinds["embedding"])


def test_sample_grids_and_class_images_are_counted(session, total, tiny_backend) -> None:
    config = session.config
    config.samples.grid_every_steps, config.prior.kind = 0, "none"
    stage = resolve_stages(config.method, config.model.recipe)[-1]
    alone, picture = total(stage), len(tiny_backend.grammar(*tiny_backend.code_shape()))
    config.samples.grid_every_steps, config.samples.time_share = 1, 1.0
    grids = total(stage) - alone
    assert grids == stage.numbers.steps * picture * len(grid_requests(session, stage.name))
    config.samples.time_share = 0.01
    assert 0 < total(stage) - alone < grids
    config.samples.grid_every_steps, config.prior.kind = 0, "distill"
    assert total(stage) - alone == picture * config.prior.images > 0
