"""Sampling speed: `python experiments/benchmarks decode model=nano decoder=plain,jacobi batch=1,16`.

On a CPU all decoders and both baselines run in turns in every round, so that other jobs on the machine affect
all of them. On a GPU they run one after the other, because two caches may not fit. Ratios are medians over
rounds.

    decoder=plain       one or several of conf/decoder
    batch=1,16          pictures decoded together
    runs=5              rounds
    weights=model       or random_7b, random_235m: random weights instead of a checkpoint, for a Lumina-mGPT
    baselines=...       generate,static; "static" or "none" omits the slow ones
    out=DIR             folder for decode.json and decode.md

Other arguments are settings of `personalar.sample` (`decoder.window=32`, `trainer=gpu`).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.baseline import BASELINES, Baseline
from benchmarks.machine import (
    FORMULA,
    Moment,
    copy_bandwidth,
    counted_forwards,
    machine,
    now,
    peak_bytes,
    reason,
    release_memory,
    reset_peak,
    split_own,
    step_bytes,
    whole_number,
)
from benchmarks.random_weights import SHAPES, random_model

from personalar.config.commands import SampleConfig
from personalar.config.compose import composed, conf_dir, read_config
from personalar.config.plugins import build
from personalar.core.png import save_png
from personalar.core.process import keep_memory, prepare_torch
from personalar.generation.generator import Generator
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.loading import obtain_model

PROMPT = "a photo of a cat in the snow"
OWN = {"decoder": "plain", "batch": "1,16", "runs": "5", "weights": "model", "out": ""}
OWN["baselines"] = ",".join(BASELINES)


@dataclass(kw_only=True)
class Contender:
    """A decoder or baseline at one batch size, with its measurements."""

    name: str
    batch: int
    draw: Callable[..., Any]
    times: list[Moment] = field(default_factory=list)
    """Wall time and CPU time of decoding, in seconds."""
    total_s: list[float] = field(default_factory=list)
    """Wall time with image tokenizer and PNG."""
    steps: int = 0
    first_s: float = 0.0
    """Wall time of the first run, with compiling and capturing."""
    peak: int = 0
    failed: str = ""
    """Reason that it could not be measured."""


def read_settings(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings of the benchmark, and those of `personalar.sample`.

    Raises:
        ValueError: unknown settings or values; the message lists the allowed ones.
    """
    own, rest = split_own(arguments, OWN)
    for number in (*own["batch"].split(","), own["runs"]):
        whole_number({"batch or runs": number}, "batch or runs")
    for key, allowed in (("weights", ("model", *SHAPES)), ("baselines", (*BASELINES, "none"))):
        for name in own[key].split(","):
            if name not in allowed:
                raise ValueError(f"invalid value {key}={name}; allowed: {', '.join(allowed)}")
    for name in own["decoder"].split(","):
        composed("sample", [f"decoder={name}", *rest])
    return own, rest


def compose_sample(decoder: str, rest: list[str]) -> SampleConfig:
    """Return the settings of `personalar.sample decoder=...`.

    A command can measure several decoders; a setting such as `decoder.window=32` is dropped for those without
    it.
    """
    text = (conf_dir() / "decoder" / f"{decoder}.yaml").read_text()
    others = [f"decoder.{key}=" for key in ("window", "max_batch", "bucket") if f"\n{key}:" not in text]
    own = [word for word in rest if not word.startswith(tuple(others))]
    return read_config(
        composed("sample", [f"decoder={decoder}", "concept=none", f"prompts=[{PROMPT}]", *own])
    )


def open_backend(own: dict[str, str], config: SampleConfig) -> ChameleonBackend:
    """Return the model to measure."""
    device, dtype = config.trainer.torch_device, getattr(torch, config.model.dtype)
    if own["weights"] in SHAPES:
        return random_model(own["weights"], dtype=dtype, device=torch.device(device))
    files = obtain_model(config.model, say=print)
    return files.load(dtype=dtype, device=device)


def contenders(own: dict[str, str], rest: list[str], backend: ChameleonBackend) -> list[Contender]:
    """Return all decoders and baselines, at all batch sizes."""
    names = own["decoder"].split(",")
    draws: dict[str, Any] = {
        name: build("decoder", compose_sample(name, rest).decoder.settings) for name in names
    }
    sampling = draws[names[0]].sampling
    for name in own["baselines"].split(","):
        if name != "none":
            draws[BASELINES[name]] = Baseline(backend, sampling, static=name == "static")
    batches = map(int, own["batch"].split(","))
    return [Contender(name=name, batch=b, draw=draw) for b in batches for name, draw in draws.items()]


def measure(contender: Contender, backend: ChameleonBackend, folder: Path, *, turn: int) -> None:
    """Sample, decode and write one batch, and record the times. Seeds differ per turn; -1 is the warm-up."""
    generator, batch = Generator(backend=backend, decoder=contender.draw), contender.batch
    ids = backend.prompt_ids(PROMPT)
    seeds = list(range(max(turn, 0) * batch, (max(turn, 0) + 1) * batch))
    owner = contender.draw.model.model if isinstance(contender.draw, Baseline) else backend
    reset_peak(backend.device)
    started, cpu = now()
    with counted_forwards(owner) as calls, torch.inference_mode():  # as in `personalar.sample`
        codes = contender.draw(backend, [ids] * batch, backend.code_shape(), seeds)
    drawn, worked = now()
    for index, picture in enumerate(generator.pictures(codes)):
        save_png(picture, folder / f"{index}.png")
    if turn < 0:
        contender.first_s = drawn - started
        return
    contender.steps = len(calls) if len(calls) > 2 else codes[0].numel()  # replayed graphs are not counted
    contender.times.append((drawn - started, worked - cpu))
    contender.total_s.append(now()[0] - started)
    contender.peak = max(contender.peak, peak_bytes(backend.device))


def measure_all(field: list[Contender], backend: ChameleonBackend, *, runs: int) -> None:
    """Warm up and measure all contenders; lack of memory and errors of baselines are recorded."""
    together = backend.device.type != "cuda"
    for group in [field] if together else [[contender] for contender in field]:
        for turn in range(-1, runs):
            for contender in group:
                if not contender.failed:
                    attempt(contender, backend, turn)
        for contender in group:
            contender.draw.forget()
        release_memory(backend.device)


def attempt(contender: Contender, backend: ChameleonBackend, turn: int) -> None:
    """Measure one turn, or record why it failed."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(contender, backend, Path(folder), turn=turn)
    except Exception as error:
        if not isinstance(error, torch.OutOfMemoryError) and not isinstance(contender.draw, Baseline):
            raise
        contender.failed = reason(error)


def summary(
    contender: Contender, everyone: list[Contender], backend: ChameleonBackend, bandwidth: float
) -> dict[str, Any]:
    """Return one row of the table."""
    row: dict[str, Any] = {"decoder": contender.name, "batch": contender.batch}
    if contender.failed:
        return {**row, "failed": contender.failed}
    batch, (h, w) = contender.batch, backend.code_shape()
    prompt, answer = len(backend.prompt_ids(PROMPT)), len(backend.grammar(h, w))
    guided = contender.draw.sampling.guided
    read = step_bytes(backend, batch=batch, prompt=prompt, answer=answer, guided=guided)
    seconds = statistics.median(passed for passed, _ in contender.times)
    row |= {
        "steps": contender.steps,
        "ms_per_step": 1e3 * seconds / contender.steps,
        "decode_s": seconds,
        "cpu_s": statistics.median(worked for _, worked in contender.times),
        "images_per_s": batch / statistics.median(contender.total_s),
        "peak_mb": contender.peak / 1e6,
        "first_run_extra_s": max(0.0, contender.first_s - seconds),
        "roofline_fraction": h * w * read / bandwidth / seconds,
    }
    for other in everyone:
        if other.name in BASELINES.values() and other.batch in (batch, 1) and not other.failed:
            for kind, clock in (("x", 0), ("cpu x", 1)):
                pairs = zip(other.times, contender.times, strict=True)
                ratio = statistics.median(a[clock] / b[clock] for a, b in pairs)
                row[f"{kind} {other.name}, batch {other.batch}"] = ratio * batch / other.batch
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    ratios = [f"{kind} {name}" for kind in ("x", "cpu x") for name in BASELINES.values()]
    keys = {
        "steps": "{:.0f}",
        "ms_per_step": "{:.2f}",
        "decode_s": "{:.2f}",
        "cpu_s": "{:.2f}",
        "images_per_s": "{:.2f}",
        "peak_mb": "{:.0f}",
        "first_run_extra_s": "{:.1f}",
        "roofline_fraction": "{:.1%}",
        **dict.fromkeys(ratios, "{:.2f}"),
    }
    lines = [f"| decoder | batch | {' | '.join(keys)} |", "|---" * (len(keys) + 2) + "|"]
    for row in rows:
        cells = [row.get("failed", "")]
        if "failed" not in row:
            row |= {key: row[own] for key in ratios if (own := f"{key}, batch {row['batch']}") in row}
            cells = [form.format(row[key]) if key in row else "-" for key, form in keys.items()]
        lines.append(f"| {row['decoder']} | {row['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(own: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """Measure all contenders; return the record."""
    config = compose_sample(own["decoder"].split(",")[0], rest)
    prepare_torch(config.trainer.threads)
    backend = open_backend(own, config)
    field = contenders(own, rest, backend)
    bandwidth = copy_bandwidth(backend.device)
    measure_all(field, backend, runs=int(own["runs"]))
    return {
        "machine": machine(backend.device),
        "model": config.model.name if own["weights"] == "model" else own["weights"],
        "dtype": config.model.dtype,
        "settings": {**own, "arguments": rest},
        "copy_bandwidth_bytes_per_s": bandwidth,
        "roofline": FORMULA,
        "rows": [summary(contender, field, backend, bandwidth) for contender in field],
    }


def main(arguments: list[str]) -> None:
    """Measure, print the table, and write it with the JSON record to `out`."""
    own, rest = read_settings(arguments)
    keep_memory()
    record = run(own, rest)
    print(json.dumps({key: value for key, value in record.items() if key != "rows"}, indent=1))
    print(table(record["rows"]))
    for row in record["rows"]:
        if (key := f"x {BASELINES['generate']}, batch 1") in row and row["batch"] > 1:
            print(f"{row['decoder']}, batch {row['batch']}: an image takes 1/{row[key]:.2f} of {key[2:]}")
    if own["out"]:
        out = Path(own["out"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "decode.md").write_text(table(record["rows"]) + "\n")
