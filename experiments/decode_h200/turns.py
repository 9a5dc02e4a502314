"""Measure variants of the compiled decoder in turns, on the buffers of one batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from benchmarks.decode import PROMPT
from benchmarks.machine import now, reason
from changes import Changed

from personalar.generation.base import GenerationRequest
from personalar.generation.decoders.plain import Step
from personalar.generation.sampling import Sampling, seed_tensor
from personalar.generation.schedule import plan
from personalar.models.chameleon.backend import ChameleonBackend

DRAWS = 512
"""Approximate number of sampled codes that are compared."""


def square(backend: ChameleonBackend, batch: int) -> GenerationRequest:
    """Return a request for pictures of the default size."""
    ids, grid = backend.prompt_ids(PROMPT), backend.code_shape()
    return GenerationRequest(prompts=[ids] * batch, grid=grid, seeds=list(range(batch)))


@dataclass(kw_only=True)
class Contender:
    """A variant at one batch size, with its measurements."""

    name: str
    decoder: Changed
    rounds: list[list[float]] = field(default_factory=list)
    """Milliseconds of a step at each measured length, for each round."""
    ready_s: float = 0.0
    """Seconds of compiling and capturing."""
    drawn: torch.Tensor | None = None
    failed: str = ""


class Place:
    """The buffers of a batch, and the steps at which variants are timed."""

    def __init__(self, backend: ChameleonBackend, batch: int, sampling: Sampling, args: Any) -> None:
        request = square(backend, batch)
        self.backend, self.batch, self.repeats = backend, batch, args.repeats
        self.schedule = plan(backend, request, guided=sampling.guided)
        self.step = Step(backend, self.schedule, sampling, bucket=128)
        for table in (*self.step.cache.keys, *self.step.cache.values):
            table.normal_()  # with zeros a GPU needs less power and is faster
        self.step.start(request, self.schedule, None)
        last = self.schedule.num_steps - args.repeats
        wanted = np.linspace(1, max(1, last), args.lengths).round().astype(int)
        self.indices = [max(i for i in range(1, w + 1) if self.schedule.width(i) == 1) for w in wanted]
        steps = range(1, self.schedule.num_steps)
        self.compared = list(takewhile(lambda index: self.schedule.width(index) == 1, steps))
        """The steps of the first row of codes."""

    def run(self, decoder: Changed, index: int) -> None:
        """Run step `index`; it is captured the first time."""
        decoder._replay(self.step, self.schedule, index)()

    def start_from(self, decoder: Changed) -> None:
        """Sample the first row of codes with `decoder`; all variants are compared after these codes."""
        for index in self.compared:
            self.step.seek(self.schedule, index)
            self.run(decoder, index)
        self.codes = self.step.codes.clone()

    def draws(self, decoder: Changed) -> torch.Tensor:
        """Return the codes that `decoder` samples after those of `start_from`, for several seeds."""
        drawn = []
        for turn in range(max(1, DRAWS // (self.batch * len(self.compared)))):
            seeds = range(turn * self.batch, (turn + 1) * self.batch)
            self.step.seeds.copy_(seed_tensor(list(seeds), self.backend.device))
            for index in self.compared:
                self.step.seek(self.schedule, index)
                self.run(decoder, index)
                drawn.append(self.step.codes[:, index].clone())
                self.step.codes.copy_(self.codes)
        return torch.stack(drawn)

    def milliseconds(self, decoder: Changed, index: int) -> float:
        """Return the milliseconds of a step at `index`."""
        self.step.seek(self.schedule, index)
        run = decoder._replay(self.step, self.schedule, index)
        cuda = self.backend.device.type == "cuda"
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if cuda else (None, None)
        now()  # waits for the device
        started = time.perf_counter()
        if begin is not None:
            begin.record()
        for _ in range(self.repeats):
            run()
        if begin is None or end is None:
            return 1e3 * (time.perf_counter() - started) / self.repeats
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / self.repeats

    def times(self, decoder: Changed) -> list[float]:
        """Return the milliseconds of a step at each measured length."""
        return [self.milliseconds(decoder, index) for index in self.indices]

    def mean(self, decoder: Changed, times: list[float]) -> float:
        """Return the mean milliseconds over all steps of an image, interpolated between measured lengths."""
        length = [-(-start // decoder.bucket) * decoder.bucket for start in self.schedule.starts]
        ends = [length[index + 1] for index in self.indices]
        return float(np.interp(length[2:], ends, times).mean())


def prepare(contender: Contender, place: Place, before: Changed | None) -> None:
    """Compile, capture and compare, in the same memory pool as the graphs of `before`."""
    decoder, started = contender.decoder, time.perf_counter()
    if before is not None:
        decoder._pool, decoder._stream = before._pool, before._stream
    for index in place.indices:
        place.step.seek(place.schedule, index)
        place.run(decoder, index)
    now()  # waits for the device
    contender.ready_s = time.perf_counter() - started
    contender.drawn = place.draws(decoder)


def attempt(contender: Contender, work: Callable[[], None]) -> None:
    """Call `work`, or record why it failed."""
    try:
        work()
    except Exception as error:
        contender.failed = reason(error)


def compete(place: Place, contenders: list[Contender], rounds: int, until: float) -> None:
    """Measure all variants in turns; the first one is the step run as Python."""
    place.start_from(contenders[0].decoder)
    before = None
    for contender in contenders:
        rows = len(place.schedule.rows)
        if rows > contender.decoder.most_rows:
            contender.failed = f"changes nothing for {rows} rows"
        elif time.perf_counter() > until:
            contender.failed = "no time left"
        else:
            attempt(contender, partial(prepare, contender, place, before))
            before = None if contender.failed else contender.decoder  # an error may have damaged its pool
    for turn in range(rounds):
        first = turn % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            if not contender.failed:
                attempt(contender, lambda it=contender: it.rounds.append(place.times(it.decoder)))


def summary(contender: Contender, plain: Contender, place: Place) -> dict[str, Any]:
    """Return one row of the table."""
    row: dict[str, Any] = {"variant": contender.name, "batch": place.batch}
    if contender.failed:
        return row | {"failed": contender.failed}
    means = sorted(place.mean(contender.decoder, times) for times in contender.rounds)
    ms = statistics.median(means)
    pairs = [drawn for drawn in (contender.drawn, plain.drawn) if drawn is not None]
    return row | {
        "ms_per_step": ms,
        "ms_p10": means[round(0.1 * (len(means) - 1))],
        "ms_p90": means[round(0.9 * (len(means) - 1))],
        "ms_at_places": [statistics.median(times) for times in zip(*contender.rounds, strict=True)],
        "images_per_s": 1e3 * place.batch / ms / place.schedule.num_steps,
        "ready_s": contender.ready_s,
        "draws": pairs[0].numel(),
        "equal_draws": float((pairs[0] == pairs[-1]).float().mean()) if len(pairs) == 2 else None,
    }
