"""Training speed: `python -m personalar.bench train model=nano bench_stage=transformer steps=20 rounds=3`.

The program's own stage (Trainer, callbacks, checkpoints, logs), a hand-written PyTorch loop over the same
network, batches, loss and optimizer, and transformers' `Trainer` over the same and over transformers' own
class take turns in every round, so that a busy neighbour meets all of them; ratios are medians over rounds.
Beside the time that passes stands this process's time at work: on a CPU with busy neighbours the latter can
be compared, the former mostly tells how much they left.

    bench_stage=transformer     the stage; or embedding
    steps=20                    of each contender in a round
    rounds=3
    end_to_end=true             learn a whole subject before all that, for minutes from end to end
    out=FILE                    the numbers, as JSON

Other arguments are settings of `personalar.run` (`model=`, `+subject=dog`).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch

from personalar.bench import end_to_end
from personalar.bench.clock import WARM_UP, Moment, now, seconds_per_step
from personalar.bench.flops import device_peak, stage_flops
from personalar.bench.hf_trainer import Ours, Theirs, trainer_seconds
from personalar.bench.machine import machine, told
from personalar.bench.peak import Peak, peak_of, reason, release_memory, reset_peak
from personalar.bench.settings import split_own
from personalar.config.arguments import prepare_arguments
from personalar.config.compose import composed, conf_dir, read_config
from personalar.config.run_config import RunConfig
from personalar.core.console import Reporter
from personalar.core.process import keep_memory
from personalar.data.datamodule import SequenceStream, collate
from personalar.training.context import Session
from personalar.training.module import PersonalizationModule
from personalar.training.stage import Stage, sequences_per_step
from personalar.training.train import (
    make_callbacks,
    make_data,
    make_module,
    make_trainer,
    quiet,
)

Contender = Callable[[Session, Stage], Moment]
OWN = {"steps": "20", "rounds": "3", "bench_stage": "transformer", "end_to_end": "true", "out": ""}


def read_arguments(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split into the bench's own settings and those of a run."""
    own, rest = split_own(arguments, OWN)
    rest = prepare_arguments(rest, schema=RunConfig, conf=conf_dir(), needs_subject=False)
    if not own["steps"].isdigit() or not own["rounds"].isdigit() or own["rounds"] == "0":
        raise ValueError(f"steps={own['steps']} rounds={own['rounds']} must be numbers, as steps=20 rounds=3")
    if int(own["steps"]) <= WARM_UP:
        raise ValueError(f"steps={own['steps']} must be more than the {WARM_UP} that warm up")
    if own["end_to_end"] not in ("true", "false"):
        raise ValueError(f"end_to_end={own['end_to_end']} must be true or false")
    return own, rest


def open_stage(rest: list[str], name: str, steps: int, folder: Path) -> tuple[Session, Stage, int]:
    """Return a session without judges and grids in `folder`, the stage, and how long the recipe makes it.

    The stage starts from the base and has `steps` steps.
    """
    from personalar.run import prepare

    fixed = ["scorer=none", "samples.grid_every_steps=0"]
    config = read_config(composed("run", [*fixed, *end_to_end.with_subject(rest)]))
    prepared = prepare(config, folder)
    assert prepared is not None  # an empty folder holds no finished run
    session, stages = prepared
    names = [stage.name for stage, _ in stages]
    if name not in names:
        raise ValueError(f"bench_stage={name} is no stage of this method; allowed: {', '.join(names)}")
    object.__setattr__(session, "reporter", Reporter(enabled=False))
    stage = next(stage for stage, _ in stages if stage.name == name)
    asked, stage.numbers.steps = stage.numbers.steps, steps
    return session, stage, asked


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


def ours(session: Session, stage: Stage) -> Moment:
    """Return the seconds per step of a stage as `personalar.run` trains it."""
    clock = StepClock()
    trainer = make_trainer(session, stage, [*make_callbacks(session, [], lambda *_: None, stage), clock])
    module = make_module(session, stage, "base", trainer)
    with quiet():
        trainer.fit(module, make_data(session, stage, "base", module))
    return seconds_per_step(clock.times)


def bare(session: Session, stage: Stage) -> tuple[PersonalizationModule, SequenceStream, torch.device]:
    """Return the same network and sequences without Lightning around them."""
    module = make_module(session, stage, "base", None)
    data = make_data(session, stage, "base", module)
    data.prepare_data()
    module.configure_model()
    return module, data.make_stream(), torch.device(session.device)


def batches(session: Session, stage: Stage, stream: SequenceStream) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of one pass each, as the program's loader makes them."""
    sequences, size = iter(stream), session.plans[stage.name].batch
    while True:
        yield collate(list(islice(sequences, size)), pad=stream.pad)


def their_trainer(session: Session, stage: Stage) -> Moment:
    """Return the seconds per step of transformers' Trainer on the same network, batches and optimizer."""
    module, stream, _ = bare(session, stage)
    with quiet():
        return trainer_seconds(Ours(module), module, stream, session, stage)


def their_trainer_and_model(session: Session, stage: Stage) -> Moment:
    """Return the seconds per step of transformers' Trainer on transformers' own class, same weights."""
    module, stream, _ = bare(session, stage)
    with quiet():
        return trainer_seconds(Theirs(module, stage), module, stream, session, stage)


def by_hand(session: Session, stage: Stage) -> Moment:
    """Return the seconds per step of the shortest loop that computes the same."""
    module, stream, device = bare(session, stage)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    trained = [p for p in module.parameters() if p.requires_grad]
    source, times = batches(session, stage, stream), []
    passes = sequences_per_step(stage.numbers) // session.plans[stage.name].batch
    for _ in range(stage.numbers.steps):
        optimizer.zero_grad()
        for _ in range(passes):
            batch = {name: tensor.to(device) for name, tensor in next(source).items()}
            (module.batch_loss(batch) / passes).backward()
        if stage.numbers.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, stage.numbers.gradient_clip)
        optimizer.step()
        schedule.step()
        times.append(now())
    return seconds_per_step(times)


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    """Return each contender's median over the rounds."""
    return {name: statistics.median(found) for name, found in values.items() if found}


def ratios(values: dict[str, list[float]]) -> dict[str, float]:
    """Return how much longer than each of the others we take: the median of the rounds' ratios."""
    ours = values["personalar"]
    return {
        name: statistics.median(a / b for a, b in zip(ours, found, strict=True))
        for name, found in values.items() if found is not ours and len(found) == len(ours)
    }  # fmt: skip


def attempt(contender: Contender, session: Session, stage: Stage) -> tuple[Moment | None, Peak, str]:
    """Return (seconds per step, peak of memory, why it could not be measured); of us nothing is forgiven."""
    device, found, failed = torch.device(session.device), None, ""
    reset_peak(device)
    try:
        found = contender(session, stage)
    except Exception as error:
        if contender is ours:
            raise
        failed = reason(error)
    peak = peak_of(device)
    release_memory(device)  # trainers hold themselves: the next contender's network would lie beside theirs
    return found, peak, failed


def measure(own: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """Run a subject, then every contender in every round; return medians, ratios and what they ran on."""
    # First, while this process holds no memory of the device.
    subject_minutes = end_to_end.minutes(rest) if own["end_to_end"] == "true" else None
    contenders: dict[str, Contender] = {
        "personalar": ours, "by hand": by_hand, "transformers Trainer, our network": their_trainer,
        "transformers Trainer, its own network": their_trainer_and_model,
    }  # fmt: skip
    rounds: dict[str, list[Moment]] = {name: [] for name in contenders}
    peaks, failed = dict.fromkeys(contenders, Peak()), {}
    for name, contender in list(contenders.items()) * int(own["rounds"]):
        if name in failed:
            continue
        with tempfile.TemporaryDirectory() as folder:
            session, stage, asked = open_stage(rest, own["bench_stage"], int(own["steps"]), Path(folder))
            moment, peak_memory, why = attempt(contender, session, stage)
        peaks[name] = peaks[name].or_more(peak_memory)
        if moment is None:
            failed[name] = why
        else:
            rounds[name].append(moment)
    seconds, worked = (
        {name: [m[clock] for m in found] for name, found in rounds.items()} for clock in (0, 1)
    )
    work, step = session.plans[stage.name], statistics.median(seconds["personalar"])
    tokens, flops, peak = (
        sequences_per_step(stage.numbers) * work.tokens,
        stage_flops(session, stage),
        device_peak(),
    )
    return {
        **machine(torch.device(session.device)), "model": session.config.model.name, "stage": stage.name,
        "method": session.config.method.name, "batch": stage.numbers.batch, "tokens": work.tokens,
        "seconds_per_step": medians(seconds), "ours_over": ratios(seconds),
        "work_seconds_per_step": medians(worked), "our_work_over": ratios(worked),
        "tokens_per_s": tokens / step,
        "stage_steps": asked,
        "stage_minutes": asked * step / 60,
        "subject_minutes": subject_minutes,
        "flops_per_s": flops / step,
        "mfu": flops / step / peak if peak else None,
        "peak_memory_gb": {name: peak.used / 1e9 for name, peak in peaks.items()},
        "reserved_memory_gb": {name: peak.reserved / 1e9 for name, peak in peaks.items() if peak.reserved},
        "failed": failed, "rounds": seconds, "work_rounds": worked,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Return the result for people, in Markdown."""
    lines = [
        f"{result['model']}, stage {result['stage']}, method {result['method']}, batch {result['batch']} x "
        f"{result['tokens']} tokens; {told(result)}", "",
        "| | s/step (median) | personalar's over it | at work, s/step | personalar's over it "
        "| peak GB (reserved) |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, value in result["seconds_per_step"].items():
        over, work_over = (result[key].get(name, "") for key in ("ours_over", "our_work_over"))
        cells = [name, value, over, result["work_seconds_per_step"][name], work_over]
        kept = result["reserved_memory_gb"].get(name)
        cells.append(f"{result['peak_memory_gb'][name]:.2f}{'' if kept is None else f' ({kept:.2f})'}")
        lines.append("| " + " | ".join(f"{c:.4f}" if isinstance(c, float) else c for c in cells) + " |")
    lines += [f"| {name} | {why} |" + " |" * 4 for name, why in result["failed"].items()]
    mfu = "peak of this device not known" if result["mfu"] is None else f"MFU {result['mfu']:.1%}"
    lines += ["", f"{result['tokens_per_s']:.0f} tokens/s, "
                  f"{result['flops_per_s'] / 1e12:.3f} TFLOP/s ({mfu}), "
                  f"{result['stage_minutes']:.1f} minutes for the {result['stage_steps']} steps of this "
                  f"stage of a subject, pictures left out"]  # fmt: skip
    if result["subject_minutes"] is not None:
        lines[-1] += f"; {result['subject_minutes']:.1f} minutes per subject end to end"
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Entry point: measure, print, write json."""
    keep_memory()
    own, rest = read_arguments(arguments)
    result = measure(own, rest)
    print(table(result))
    if own["out"]:
        Path(own["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(own["out"]).write_text(json.dumps(result, indent=1) + "\n")
