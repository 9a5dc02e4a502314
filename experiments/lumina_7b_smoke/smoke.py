"""Smoke test at full size: write a checkpoint, load it, encode photos, train both stages and sample.

    python experiments/lumina_7b_smoke/smoke.py WORK --size 7b --device cuda --photos photos/dog

The weights are random, so the pictures are noise, but seconds, memory and sizes are those of the real model.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint import write_random
from memory import peak_host_bytes, reset_peak_memory

from personalar.config.compose import conf_dir, group_options, read_config
from personalar.config.plugins import build
from personalar.config.run_config import RunConfig
from personalar.data.codes import encode_photos
from personalar.models.chameleon.model_files import ChameleonFiles
from personalar.runs.personalize import prepare
from personalar.runs.pictures import grid_requests
from personalar.training.context import RunContext
from personalar.training.train import train_stage

TINY = ["model.layout.resolution=64", "model.dtype=float32"]
SHAPES = [(640, 480), (480, 640), (512, 512), (960, 320), (700, 512)]


class Meter:
    """Measures seconds and peak memory of every step, and prints them."""

    def __init__(self, device: str) -> None:
        self.cuda, self.rows = device == "cuda", []

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure the block; entries of the yielded dict become part of the row."""
        row: dict[str, Any] = {"step": name}
        reset_peak_memory(self.cuda)
        started = time.perf_counter()
        yield row
        if self.cuda:
            torch.cuda.synchronize()
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["host_peak_gb"] = round(peak_host_bytes() / 1e9, 2)
        row["gpu_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else None
        self.rows.append(row)
        print(json.dumps(row), flush=True)


def make_photos(folder: Path) -> Path:
    """Write five generated pictures of different shapes, to use instead of photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(SHAPES):
        bands = [Image.radial_gradient("L").rotate(60 * index + 90 * band) for band in range(3)]
        Image.merge("RGB", bands).resize(size).save(folder / f"{index}.png")
    return folder


def settings(args: argparse.Namespace, work: Path, *overrides: str) -> RunConfig:
    """Return the configuration of a user's command, with few steps and without scores."""
    numbers = [
        f"model.recipe.stages.{stage}.{key}={value}"
        for stage in ("embedding", "transformer")
        for key, value in (("steps", args.steps), ("batch", args.batch), ("accumulate", 1))
    ]
    words = [
        "+subject=folder", f"subject.path={args.photos}", "subject.noun=dog", "subject.name=smoke",
        f"model={args.model}", f"model.path={work / 'checkpoint' / 'base'}",
        f"model.vq_path={work / 'checkpoint' / 'vq'}", "model.recipe.data.copies_per_photo=1",
        "scorer=none", "samples.grid_every_steps=0", 'samples.prompts=["a photo of a {}"]',
        f"trainer={'gpu' if args.device == 'cuda' else 'cpu'}", *numbers,
        *(TINY if args.size == "tiny" else []), *args.override, *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return read_config(compose("run", words))


def train(meter: Meter, session: RunContext, stages: list, *, batch: int) -> None:
    """Train all stages, each from the result of the one before."""
    for stage in stages:
        with meter.step(f"stage {stage.name}, {stage.numbers.steps} steps, batch {batch}") as row:
            grid = grid_requests(session, stage.name)
            train_stage(session, stage, grid=grid, base_samples=[])
        took = session.folder.record["stages"][stage.name]["seconds"]
        row["seconds_per_step"] = round(took / stage.numbers.steps, 3)


def draw(meter: Meter, args: argparse.Namespace, work: Path, session: RunContext) -> None:
    """Sample one picture with every decoder; record the reason if one does not support this machine."""
    backend, identifier = session.load("transformer")
    generator = session.generator(backend, identifier)
    for name in args.decoders or group_options(conf_dir(), "decoder"):
        config = settings(args, work, f"decoder={name}")
        with meter.step(f"one picture, decoder={name}") as row:
            try:
                generator.decoder = build("decoder", config.decoder.settings)
                (picture,) = generator.images(["a photo of [V] dog"], [0])
                picture.save(work / f"{name}.png")
            except ValueError as error:
                row["refused"] = str(error)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all steps; return one row per step."""
    work, meter = args.work.resolve(), Meter(args.device)
    args.photos = args.photos or make_photos(work / "photos")
    if not (work / "checkpoint" / "vq" / "vqgan.ckpt").is_file():
        with meter.step("write a random checkpoint"):
            write_random(work / "checkpoint", args.size, device=args.device)
    prepared = prepare(settings(args, work, "overwrite=true"), work / "run")
    assert prepared is not None
    session, stages = prepared
    files: ChameleonFiles = session.model_files
    with meter.step("load it") as row:
        dtype = getattr(torch, session.config.model.dtype)
        backend = files.load(dtype=dtype, device=args.device)
        row["weights_gb"] = round(sum(file.stat().st_size for file in files.weights()) / 1e9, 2)
    with meter.step("encode five photos") as row:
        photos, data = session.subject.images, session.config.model.recipe.data
        row["codes"] = [list(codes.shape[1:]) for codes in encode_photos(backend, photos, data, seed=0)]
    del backend
    train(meter, session, stages, batch=args.batch)
    draw(meter, args, work, session)
    return meter.rows


def device_name(device: str) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"


def markdown(rows: list[dict[str, Any]], title: str) -> str:
    """Return the rows as a Markdown table."""
    lines = [title, "", "| step | seconds | host peak GB | GPU peak GB | |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row["step"], row["seconds"], row["host_peak_gb"], row["gpu_peak_gb"] or "-"]
        known = {"step", "seconds", "host_peak_gb", "gpu_peak_gb"}
        cells.append("; ".join(f"{key} {value}" for key, value in row.items() if key not in known))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the checkpoint (14 GB at 7b) and the run")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--model", default="lumina_mgpt_7b_512")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--photos", type=Path, help="folder of photos; painted pictures without it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--decoders", nargs="*", help="default: every one of conf/decoder")
    parser.add_argument(
        "--override", nargs="*", default=[], help="further settings, such as trainer.threads=4"
    )
    parser.add_argument("--out", type=Path, help="folder for the JSON and the table; default: WORK")
    args = parser.parse_args(arguments)
    painted = args.photos is None
    rows = measure(args)
    out = args.out or args.work
    out.mkdir(parents=True, exist_ok=True)
    title = f"{args.model}, size {args.size}, random weights; {device_name(args.device)}"
    title += f"; torch {torch.__version__}"
    title += "; painted pictures" if painted else "; photographs"
    record = {"title": title, "command": sys.argv[1:] if arguments is None else arguments, "steps": rows}
    name = f"smoke_{args.size}_{args.device}"
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown(rows, title))


if __name__ == "__main__":
    main()
