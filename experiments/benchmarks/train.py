"""Training speed: `python experiments/benchmarks train model=nano bench_stage=transformer steps=20 rounds=3`.

The program's own stage (Trainer, callbacks, checkpoints, logs), a hand-written PyTorch loop over the same
network, batches, loss and optimizer, and transformers' `Trainer` over the same and over transformers' own
class take turns in every round, so that a busy neighbour meets all of them; ratios are medians over rounds.
Beside the time that passes stands this process's time at work, which suffers less from busy neighbours.

    bench_stage=transformer     the stage; or embedding
    steps=20                    of each contender in a round
    rounds=3
    out=FILE                    the numbers, as JSON

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
from personalar.training.train import make_callbacks, make_loggers, make_trainer, quiet

OWN = {"steps": "20", "rounds": "3", "bench_stage": "transformer", "out": ""}


def read_settings(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the benchmark's own settings, and those of a run: of the cat, where they name no subject."""
    own, rest = split_own(arguments, OWN)
    whole_number(own, "rounds")
    if whole_number(own, "steps") <= WARM_UP:
        raise ValueError(f"steps={own['steps']} must be more than the {WARM_UP} that warm up")
    rest = rest if any("subject=" in word for word in rest) else ["+subject=cat", *rest]
    composed("run", rest)
    return own, rest


def open_stage(rest: list[str], name: str, steps: int, folder: Path) -> tuple[RunContext, Stage]:
    """Return a session without judges and grids in `folder`, and the stage: from the base, `steps` steps."""
    config = read_config(composed("run", ["scorer=none", "samples.grid_every_steps=0", *rest]))
    prepared = prepare(config, folder)
    assert prepared is not None  # an empty folder holds no finished run
    session, stages = prepared
    named = {stage.name: stage for stage in stages}
    if name not in named:
        raise ValueError(f"bench_stage={name} is not in this method; allowed: {', '.join(named)}")
    object.__setattr__(session, "reporter", Reporter(enabled=False))
    stage = replace(named[name], start="base")
    stage.numbers.steps = steps
    return session, stage


class StepClock(L.Callback):
    """Notes when each optimizer step ended."""

    def __init__(self) -> None:
        self.times: list[Moment] = []
        self._last = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Note the time once the step is complete."""
        if trainer.global_step > self._last:
            self._last = trainer.global_step
            self.times.append(now())


def ours(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of a stage as `personalar.run` trains it."""
    clock = StepClock()
    callbacks = [*make_callbacks(session, stage.name), clock]
    trainer = make_trainer(session, stage, callbacks, make_loggers(session, stage.name))
    with quiet():
        trainer.fit(PersonalizationModule(session, stage), SubjectDataModule(session, stage))
    return seconds_per_step(clock.times)


def bare(session: RunContext, stage: Stage) -> tuple[PersonalizationModule, SequenceStream]:
    """Return the same network and sequences without Lightning around them."""
    module = PersonalizationModule(session, stage)
    module.configure_model()
    return module, SubjectDataModule(session, stage).make_stream(module.network.backend)


def their_trainer(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of transformers' Trainer on the same network, batches and optimizer."""
    module, stream = bare(session, stage)
    with quiet():
        return trainer_seconds(Ours(module), module, stream, session, stage)


def their_trainer_and_model(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of transformers' Trainer on transformers' own class, same weights."""
    module, stream = bare(session, stage)
    with quiet():
        return trainer_seconds(Theirs(module, stage), module, stream, session, stage)


def batches(stream: SequenceStream, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of one pass each, as the program's loader makes them."""
    sequences = iter(stream)
    while True:
        yield collate(list(islice(sequences, size)), pad=stream.pad)


def by_hand(session: RunContext, stage: Stage) -> Moment:
    """Return the seconds per step of the shortest loop that computes the same."""
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
    """Measure a contender once more; note why it could not be, but for our own."""
    device = torch.device(session.device)
    reset_peak(device)
    try:
        row["times"].append(CONTENDERS[row["name"]](session, stage))
    except Exception as error:
        if row["name"] == "personalar":
            raise
        row["failed"] = reason(error)
    row["peak_gb"] = max(row["peak_gb"], peak_bytes(device) / 1e9)
    release_memory(device)  # trainers hold themselves: the next contender's network would lie beside theirs


def run(own: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """Run every contender in every round; return medians, ratios and what they ran on."""
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
    """Return the result in Markdown."""
    keys = ("s_per_step", "ours_over_s_per_step", "work_s_per_step", "ours_over_work_s_per_step", "peak_gb")
    lines = [f"|  | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for row in result["rows"]:
        cells = [row["failed"]] if "failed" in row else [f"{row[key]:.4f}" for key in keys]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure, print, write JSON."""
    own, rest = read_settings(arguments)
    keep_memory()
    result = run(own, rest)
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))
    print(table(result))
    if own["out"]:
        Path(own["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(own["out"]).write_text(json.dumps(result, indent=1) + "\n")
