"""Sampling speed: `python -m personalar.bench decode model=nano decoder=plain,jacobi batch=1,16`.

On a CPU every decoder and both baselines take turns in every round, so that a busy neighbour meets all of
them; on a GPU they come one after the other, because the caches of two need not fit. Ratios are medians over
rounds.

    decoder=plain       one or several of conf/decoder
    batch=1,16          pictures decoded together
    runs=5              rounds
    weights=model       or random_7b: the 7B's shape with random weights in place of a checkpoint
    baselines=...       generate,static; static or none leaves out the slow ones
    out=DIR             decode.json and decode.md there

Other arguments are settings of `personalar.sample` (`decoder.window=32`, `trainer=gpu`).
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from personalar.bench.baseline import BASELINES, Baseline
from personalar.bench.clock import counted_forwards
from personalar.bench.decode_table import PROMPT, Contender, summary, table
from personalar.bench.machine import machine
from personalar.bench.peak import peak_of, reason, release_memory, reset_peak
from personalar.bench.roofline import FORMULA, copy_bandwidth, synchronize
from personalar.bench.settings import split_own
from personalar.config.arguments import prepare_arguments
from personalar.config.commands import SampleConfig
from personalar.config.compose import composed, conf_dir, read_config
from personalar.core.png import save_png
from personalar.core.process import keep_memory, prepare_torch
from personalar.generation.generator import Generator
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.serialization import load_backend
from personalar.models.loading import obtain_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    decoders: list[str]
    baselines: list[str]
    batches: list[int]
    runs: int
    weights: str
    out: Path | None
    rest: list[str]
    """Settings of `personalar.sample`."""


def read_settings(arguments: list[str]) -> Settings:
    """Read the command line.

    Raises:
        ValueError: for what is not known, with what is allowed.
    """
    defaults = {"decoder": "plain", "batch": "1,16", "runs": "5", "weights": "model", "out": ""}
    defaults["baselines"] = ",".join(BASELINES)
    own, rest = split_own(arguments, defaults)
    rest = prepare_arguments(rest, schema=SampleConfig, conf=conf_dir(), needs_subject=False)
    names = own["decoder"].split(",")
    for name in names:
        prepare_arguments([f"decoder={name}"], schema=SampleConfig, conf=conf_dir(), needs_subject=False)
    for argument in rest:
        if argument.startswith("decoder.") and not any(decoder_takes(name, argument) for name in names):
            raise ValueError(f"{argument} is a setting of none of {', '.join(names)}")
    numbers = [*own["batch"].split(","), own["runs"]]
    if not all(number.isdigit() and int(number) > 0 for number in numbers):
        raise ValueError(
            f"batch={own['batch']} runs={own['runs']} must be numbers from 1, such as batch=1,16 runs=5"
        )
    if own["weights"] not in ("model", "random_7b"):
        raise ValueError(f"weights={own['weights']!r} is not known; allowed: model, random_7b")
    baselines = [] if own["baselines"] == "none" else own["baselines"].split(",")
    if unknown := set(baselines) - set(BASELINES):
        raise ValueError(
            f"baselines={own['baselines']} has {', '.join(sorted(unknown))}; allowed: "
            f"{', '.join(BASELINES)} or none"
        )
    return Settings(
        decoders=names,
        baselines=baselines,
        batches=[int(number) for number in own["batch"].split(",")],
        runs=int(own["runs"]),
        weights=own["weights"],
        out=Path(own["out"]) if own["out"] else None,
        rest=rest,
    )


def compose_sample(decoder: str, rest: list[str]) -> SampleConfig:
    """Return the settings that `personalar.sample decoder=...` would run with."""
    own = [x for x in rest if not x.startswith("decoder.") or decoder_takes(decoder, x)]
    given = [f"decoder={decoder}", "concept=none", f"prompts=[{PROMPT}]"]
    return read_config(composed("sample", [*given, *own]))


def decoder_takes(decoder: str, argument: str) -> bool:
    """Tell whether `decoder.key=value` is a setting of that decoder: one command measures several."""
    text = (conf_dir() / "decoder" / f"{decoder}.yaml").read_text()
    key = argument.partition("=")[0].removeprefix("decoder.")
    return f"\n{key}:" in text or key in ("cfg_scale", "top_k", "top_p", "temperature")


def measure(contender: Contender, generator: Generator, folder: Path, *, turn: int) -> None:
    """Draw, decode and write one batch; add what it took. Every turn has its own seeds."""
    backend, batch = generator.backend, contender.batch
    side = backend.protocol.config.resolution
    ids = backend.protocol.prompt_ids(PROMPT, side, side)
    seeds = list(range(turn * batch, (turn + 1) * batch))
    reset_peak(backend.device)
    synchronize(backend.device)
    started, cpu = time.perf_counter(), time.process_time()
    owner = contender.draw.model.model if isinstance(contender.draw, Baseline) else backend
    with counted_forwards(owner) as calls, torch.inference_mode():  # as `personalar.sample` draws
        codes = contender.draw(backend, [ids] * batch, backend.protocol.code_shape(side, side), seeds)
    synchronize(backend.device)
    drawn = time.perf_counter()
    contender.cpu_s.append(time.process_time() - cpu)
    contender.steps.append(len(calls))
    for index, picture in enumerate(generator.pictures(codes)):
        save_png(picture, folder / f"{index}.png")
    contender.decode_s.append(drawn - started)
    contender.total_s.append(time.perf_counter() - started)
    contender.peak = contender.peak.or_more(peak_of(backend.device))


def contenders(settings: Settings, backend: ChameleonBackend) -> list[Contender]:
    """Return everything that takes part."""
    from hydra.utils import instantiate

    draws: dict[str, Any] = {}
    for name in settings.decoders:
        draws[name] = instantiate(compose_sample(name, settings.rest).decoder.settings)
    sampling = next(iter(draws.values())).sampling
    for name in settings.baselines:
        baseline = Baseline(backend, sampling, static=name == "static")
        draws[baseline.name] = baseline
    return [
        Contender(name=name, batch=batch, draw=draw)
        for batch in settings.batches
        for name, draw in draws.items()
    ]


def measure_all(settings: Settings, field: list[Contender], backend: ChameleonBackend, folder: Path) -> None:
    """Warm up and measure every contender; one that runs out of memory, or a baseline that fails, says so."""
    together = backend.device.type != "cuda"
    for group in [field] if together else [[contender] for contender in field]:
        for turn in range(-1, settings.runs):
            for contender in group:
                generator = Generator(backend=backend, decoder=contender.draw)
                if not contender.failed:
                    attempt(contender, generator, folder, turn=turn)
        for contender in group:
            contender.draw.forget()
        release_memory(backend.device)


def attempt(contender: Contender, generator: Generator, folder: Path, *, turn: int) -> None:
    """Measure one turn, turn -1 being the warm-up; keep why it failed."""
    try:
        if turn < 0:
            warm_up(contender, generator, folder)
        else:
            measure(contender, generator, folder, turn=turn)
    except Exception as error:
        if not isinstance(error, torch.OutOfMemoryError) and not isinstance(contender.draw, Baseline):
            raise
        contender.failed = reason(error)


def warm_up(contender: Contender, generator: Generator, folder: Path) -> None:
    """Run once and keep only how long it took: compiling and capturing happen here."""
    measure(contender, generator, folder, turn=0)
    contender.first_s = contender.decode_s[0]
    for values in (contender.decode_s, contender.total_s, contender.cpu_s, contender.steps):
        values.clear()


def run(settings: Settings) -> dict[str, Any]:
    """Measure everything; return one record."""
    config = compose_sample(settings.decoders[0], settings.rest)
    prepare_torch(config.trainer.threads)
    device = config.trainer.torch_device
    dtype = getattr(torch, config.model.dtype)
    if settings.weights == "random_7b":
        from personalar.bench.random_weights import random_7b

        backend = random_7b(dtype=dtype, device=torch.device(device))
    else:
        files = obtain_model(config.model, say=print)
        backend = load_backend(files, dtype=dtype, device=device, attention=config.trainer.attention)
    field = contenders(settings, backend)
    bandwidth = copy_bandwidth(backend.device)
    with tempfile.TemporaryDirectory() as name:
        measure_all(settings, field, backend, Path(name))
    rows = [summary(contender, field, backend, bandwidth) for contender in field]
    return {
        "machine": machine(backend.device),
        "settings": describe(settings, config, bandwidth),
        "rows": rows,
    }


def describe(settings: Settings, config: SampleConfig, bandwidth: float) -> dict[str, Any]:
    """Return what was asked for, and how the roofline is counted."""
    return {
        "model": config.model.name if settings.weights == "model" else settings.weights,
        "dtype": config.model.dtype,
        "runs": settings.runs,
        "arguments": settings.rest,
        "decoder": {k: v for k, v in asdict(config.decoder).items() if v is not None},
        "copy_bandwidth_bytes_per_s": bandwidth,
        "roofline": FORMULA,
    }


def main(arguments: list[str]) -> None:
    """Measure, print the table, and write the JSON beside it."""
    settings = read_settings(arguments)
    keep_memory()
    record = run(settings)
    print(json.dumps(record["machine"] | record["settings"], indent=1))
    print(table(record))
    for row in record["rows"]:
        if (key := f"x {BASELINES['generate']}, batch 1") in row and row["batch"] > 1:
            print(f"{row['decoder']}, batch {row['batch']}: {row[key]:.2f} times {key.removeprefix('x ')}")
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
        (settings.out / "decode.md").write_text(table(record) + "\n")
