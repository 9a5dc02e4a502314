"""Training speed: `python experiments/benchmarks train model=nano bench_stage=transformer steps=20 rounds=3`.

Four programs run in turns in every round, so that other jobs on the machine affect all of them: a stage of
personalar (with callbacks, checkpoints and logs), a hand-written PyTorch loop with the same network, batches,
loss and optimizer, transformers' `Trainer` with the same, and with transformers' own class. Ratios are
medians over rounds. CPU time is measured too, because it depends less on other jobs than wall time.

    bench_stage=transformer     the stage; or embedding
    steps=20                    steps of each program per round
    rounds=3
    out=FILE                    write the results as JSON

Other arguments are settings of `personalar.run` (`model=`, `+subject=dog`).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from benchmarks.hf_trainer import Ours, Theirs, trainer_seconds
from benchmarks.machine import (
    WARM_UP,
    Moment,
    machine,
    now,
    peak_bytes,
    reason,
    release_memory,
    reset_peak,
    seconds_per_step,
    split_own,
    whole_number,
)

from personalar.config.compose import composed, read_config
from personalar.config.run_config import Stage
from personalar.core.console import Reporter
from personalar.core.process import keep_memory
from personalar.data.stream import SequenceStream, collate
from personalar.runs.personalize import prepare
from personalar.training.context import RunContext
from personalar.training.datamodule import SubjectDataModule
from personalar.training.module import PersonalizationModule
from personalar.training.train import build_all, make_trainer, quiet

OWN = {"steps": "20", "rounds": "3", "bench_stage": "transformer", "out": ""}


def read_settings(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings of the benchmark, and those of a run (default: `+subject=cat`).

    Raises:
        ValueError: unknown settings, or too few steps.
    """
    own, rest = split_own(arguments, OWN)
    whole_number(own, "rounds")
    if whole_number(own, "steps") <= WARM_UP:
        raise ValueError(f"steps={own['steps']} must be more than the {WARM_UP} steps of warm-up")
    rest = rest if any("subject=" in word for word in rest) else ["+subject=cat", *rest]
    composed("run", rest)
    return own, rest


def open_stage(rest: list[str], name: str, steps: int, folder: Path) -> tuple[RunContext, Stage]:
    """Return a run in `folder` without scorers and grids, and the stage, which starts from the base."""
    # transformers' own class has no distillation, so all programs learn the codes of class images.
    same = ["scorer=none", "samples.grid_every_steps=0", "prior=replay", "prior.weight=null"]
    config = read_config(composed("run", [*same, *rest]))
    prepared = prepare(config, folder)
    assert prepared is not None  # an empty folder contains no finished run
    session, stages = prepared
    named = {stage.name: stage for stage in stages}
    if name not in named:
        raise ValueError(f"bench_stage={name} is not in this method; allowed: {', '.join(named)}")
    object.__setattr__(session, "reporter", Reporter(enabled=False))
    stage = replace(named[name], start="base")
    stage.numbers.steps = steps
    return session, stage


class StepClock(L.Callback):
    """Records the time at the end of each optimizer step."""

    def __init__(self) -> None:
        self.times: list[Moment] = []
        self._last = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Record the time after the last micro-batch of a step."""
        if trainer.global_step > self._last:
            self._last = trainer.global_step
            self.times.append(now())


def ours(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of a stage of `personalar.run`."""
    clock = StepClock()
    callbacks, loggers = (
        build_all(group, getattr(session.config, group), session, stage.name)
        for group in ("callbacks", "logger")
    )
    trainer = make_trainer(session, stage, [*callbacks, clock], loggers)
    with quiet():
        trainer.fit(PersonalizationModule(session, stage), SubjectDataModule(session, stage))
    return seconds_per_step(clock.times)


def bare(session: RunContext, stage: Stage) -> tuple[PersonalizationModule, SequenceStream]:
    """Return the same network and sequences without Lightning."""
    module = PersonalizationModule(session, stage)
    module.configure_model()
    return module, SubjectDataModule(session, stage).make_stream(module.network.backend)


def their_trainer(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of transformers' Trainer with the same network, batches and optimizer."""
    module, stream = bare(session, stage)
    with quiet():
        return trainer_seconds(Ours(module), module, stream, session, stage)


def their_trainer_and_model(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of transformers' Trainer with its own class and the same weights."""
    module, stream = bare(session, stage)
    with quiet():
        return trainer_seconds(Theirs(module, stage), module, stream, session, stage)


def batches(stream: SequenceStream, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the same micro-batches as the data loader of personalar."""
    sequences = iter(stream)
    while True:
        yield collate(list(islice(sequences, size)), pad=stream.pad)


def by_hand(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of a minimal loop that computes the same."""
    module, stream = bare(session, stage)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    trained = [p for p in module.parameters() if p.requires_grad]
    size, times = session.plans[stage.name].batch, []
    source, passes = batches(stream, size), stage.numbers.sequences // size
    for _ in range(stage.numbers.steps):
        optimizer.zero_grad()
        for _ in range(passes):
            batch = {name: tensor.to(session.device) for name, tensor in next(source).items()}
            (module.batch_loss(batch) / passes).backward()
        if stage.numbers.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, stage.numbers.gradient_clip)
        optimizer.step()
        schedule.step()
        times.append(now())
    return seconds_per_step(times)


CONTENDERS: dict[str, Callable[[RunContext, Stage], Moment]] = {
    "personalar": ours,
    "by hand": by_hand,
    "transformers Trainer, our network": their_trainer,
    "transformers Trainer, its own network": their_trainer_and_model,
}


def attempt(row: dict[str, Any], session: RunContext, stage: Stage) -> None:
    """Measure a program once more, or record why it failed; an error of personalar itself is raised."""
    device = torch.device(session.device)
    reset_peak(device)
    try:
        row["times"].append(CONTENDERS[row["name"]](session, stage))
    except Exception as error:
        if row["name"] == "personalar":
            raise
        row["failed"] = reason(error)
    row["peak_gb"] = max(row["peak_gb"], peak_bytes(device) / 1e9)
    release_memory(device)  # trainers have reference cycles, and their network would stay in memory


def run(own: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """Run every program in every round; return medians, ratios and a description of the machine."""
    rows = [{"name": name, "times": [], "peak_gb": 0.0} for name in CONTENDERS]
    for row in rows * int(own["rounds"]):
        if "failed" not in row:
            with tempfile.TemporaryDirectory() as folder:
                session, stage = open_stage(rest, own["bench_stage"], int(own["steps"]), Path(folder))
                attempt(row, session, stage)
    first = rows[0]["times"]
    for row in rows:
        for key, clock in (("s_per_step", 0), ("work_s_per_step", 1)):
            if "failed" not in row:
                row[key] = statistics.median(moment[clock] for moment in row["times"])
                pairs = zip(first, row["times"], strict=True)
                row[f"ours_over_{key}"] = statistics.median(a[clock] / b[clock] for a, b in pairs)
    plan = session.plans[stage.name]
    return {
        "machine": machine(torch.device(session.device)),
        "model": session.config.model.name,
        "method": session.config.method.name,
        "stage": stage.name,
        "batch": stage.numbers.batch,
        "tokens": plan.tokens,
        "tokens_per_s": stage.numbers.sequences * plan.tokens / rows[0]["s_per_step"],
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    keys = ("s_per_step", "ours_over_s_per_step", "work_s_per_step", "ours_over_work_s_per_step", "peak_gb")
    lines = [f"|  | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for row in result["rows"]:
        cells = [row["failed"]] if "failed" in row else [f"{row[key]:.4f}" for key in keys]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure, print the table, and write the JSON record."""
    own, rest = read_settings(arguments)
    keep_memory()
    result = run(own, rest)
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))
    print(table(result))
    if own["out"]:
        Path(own["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(own["out"]).write_text(json.dumps(result, indent=1) + "\n")
