"""Measure milliseconds per forward pass of each decoder, in turn with transformers on the same weights.

    python experiments/janus_1b_cpu/decoding.py WORK --dtype bfloat16

WORK is the folder of `laptop.py`: it contains the checkpoint and the concept that was trained with LoRA. All
contenders take turns and the median counts, because the memory bandwidth of a virtual machine depends on its
neighbours. The pass over the prompt is not included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from laptop import settings
from transformers_side import open_model, seconds_per_code

from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.concept import Concept
from personalar.config.plugins import build
from personalar.core.process import prepare_torch
from personalar.generation.generator import Generator
from personalar.models.base import Backend
from personalar.models.loading import obtain_model


class Enough(Exception):
    """Ends the sampling of a picture after enough passes."""


class Clock:
    """Times the forward passes of a backend and ends the sampling after `passes` of them."""

    def __init__(self, backend: Backend, passes: int) -> None:
        self.forward, self.passes, self.starts = backend.forward, passes, []
        backend.forward = self.timed

    def timed(self, *args: Any, **kwargs: Any) -> Any:
        self.starts.append(time.perf_counter())
        if len(self.starts) > self.passes + 2:
            raise Enough
        return self.forward(*args, **kwargs)

    def seconds_per_pass(self, sample: Callable[[], Any]) -> float:
        self.starts.clear()
        with suppress(Enough):
            sample()
        # The first pass is the prompt, and the second one allocates.
        return (self.starts[-1] - self.starts[2]) / (len(self.starts) - 3)


def load(args: argparse.Namespace, *, learned: bool) -> tuple[Backend, Identifier | None]:
    """Return the base, with the concept of `laptop.py` if `learned`."""
    config = settings(args)
    files = obtain_model(config.model, say=print)
    dtype, device = getattr(torch, args.dtype), torch.device("cpu")
    backend = files.load(dtype=dtype, device=device)
    if not learned:
        return backend, None
    stage = args.work / f"run_{args.dtype}" / "stages" / "transformer"
    return backend, Concept.load(stage / "concept").apply(backend, {}, strength=1.0)


def samplers(args: argparse.Namespace) -> dict[str, tuple[Clock, Callable[[], Any]]]:
    """Return a clock and a function that samples, by contender."""
    loaded = {False: load(args, learned=False)}
    names = [("plain", "plain", 1, False), ("4 pictures", "plain", 4, False), ("jacobi", "jacobi", 1, False)]
    if args.lora:
        loaded[True] = load(args, learned=True)
        names.append(("plain, LoRA", "plain", 1, True))
    clocks = {learned: Clock(backend, args.passes) for learned, (backend, _) in loaded.items()}
    found = {}
    for name, decoder, count, learned in names:
        backend, identifier = loaded[learned]
        config = settings(args, f"decoder={decoder}").decoder
        generator = Generator(
            backend=backend, decoder=build("decoder", config.settings), identifier=identifier
        )
        prompts = [f"a photo of a {'[V] dog' if learned else 'dog'}"] * count
        found[name] = clocks[learned], partial(generator.codes, prompts, list(range(count)))
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", action="store_true", help="also with the concept (a third model)")
    args = parser.parse_args()
    args.checkpoint, args.photos, args.steps = args.work / "checkpoint", args.work, 1
    args.device, args.override = "cpu", []
    prepare_torch("auto")
    times: dict[str, list[float]] = {"transformers": []}
    theirs = open_model(args.checkpoint, getattr(torch, args.dtype))
    ours = samplers(args)
    for _ in range(args.rounds):
        times["transformers"].append(seconds_per_code(theirs, args.passes))
        for name, (clock, sample) in ours.items():
            times.setdefault(name, []).append(clock.seconds_per_pass(sample))
    for name, all_rounds in times.items():
        rounds = [round(seconds * 1000) for seconds in all_rounds]
        print(json.dumps({"contender": name, "ms_per_pass": statistics.median(rounds), "rounds": rounds}))


if __name__ == "__main__":
    main()
