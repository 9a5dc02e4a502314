"""Measure Janus-Pro-1B on a machine without a GPU: seconds and memory of every step of a user.

    python experiments/janus_1b_cpu/laptop.py WORK --dtype bfloat16 --photos photos/dog

The weights are random, so the pictures are noise, but seconds, memory and sizes are those of the real model.
With `--device cuda` it is a smoke test for a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "lumina_7b_smoke"))
from checkpoint_1b import write_random
from smoke import Meter, device_name, make_photos, markdown

from personalar.config.compose import conf_dir, read_config
from personalar.config.plugins import build
from personalar.config.run_config import RunConfig
from personalar.data.codes import encode_photos
from personalar.runs.personalize import prepare
from personalar.runs.pictures import grid_requests
from personalar.runs.time_estimate import lines
from personalar.training.context import RunContext
from personalar.training.train import train_stage

STREAM_BYTES = 2**31
CODES = 576


def words(args: argparse.Namespace, *overrides: str) -> list[str]:
    """Return the arguments of `python -m personalar.run`, with few steps."""
    stages = ("embedding", "lora")
    steps = [f"model.recipe.stages.{stage}.steps={args.steps}" for stage in stages]
    steps += [f"model.recipe.stages.{stage}.{key}=1" for stage in stages for key in ("batch", "accumulate")]
    return [
        "+subject=folder",
        f"subject.path={args.photos}",
        "subject.noun=dog",
        "subject.name=laptop",
        "method=lora",
        "model=janus_pro_1b",
        f"model.path={args.checkpoint}",
        f"model.dtype={args.dtype}",
        "model.recipe.data.copies_per_photo=1",
        "scorer=none",
        "samples.grid_every_steps=0",
        'samples.prompts=["a photo of a {}"]',
        f"trainer={'gpu' if args.device == 'cuda' else 'cpu'}",
        *steps,
        *args.override,
        *overrides,
    ]


def settings(args: argparse.Namespace, *overrides: str) -> RunConfig:
    """Return the configuration of that command."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return read_config(compose("run", words(args, *overrides)))


def read_bandwidth() -> float:
    """Return the bytes per second that all threads together read from memory."""
    table = torch.ones(STREAM_BYTES // 4)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        table.sum()
        times.append(time.perf_counter() - started)
    return STREAM_BYTES / min(times)


def doctor(args: argparse.Namespace) -> str:
    """Return the last line of `personalar.doctor`, which is about the base."""
    command = [
        sys.executable,
        "-m",
        "personalar.doctor",
        "model=janus_pro_1b",
        f"model.path={args.checkpoint}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr.strip()[-200:]


def draw(meter: Meter, args: argparse.Namespace, session: RunContext, stage: str) -> None:
    """Sample one picture with each decoder, and a batch with decoder=plain."""
    backend, identifier = session.load(stage)
    generator = session.generator(backend, identifier)
    pictures = [("plain", 1), ("jacobi", 1), ("plain", args.batch)]
    for name, count in pictures:
        config = settings(args, f"decoder={name}")
        generator.decoder = build("decoder", config.decoder.settings)
        with meter.step(f"{count} picture(s), decoder={name}") as row:
            images = generator.images(["a photo of [V] dog"] * count, list(range(count)))
        row["ms_per_code_of_a_picture"] = round(row["seconds"] * 1000 / CODES / count, 1)
        images[0].save(args.work / f"{name}_{count}_{args.dtype}.png")


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all steps; return one row per step."""
    meter = Meter(args.device)
    with meter.step("write the checkpoint"):
        args.checkpoint = write_random(args.work / "checkpoint")
    with meter.step("personalar.doctor") as row:
        row["result"] = doctor(args)
    with meter.step("read memory") as row:
        row["gigabytes_per_second"] = round(read_bandwidth() / 1e9, 1)
    run = args.work / f"run_{args.dtype}"
    shutil.rmtree(run, ignore_errors=True)  # of an earlier measurement
    with meter.step("check everything before a run"):
        session, stages = prepare(settings(args, "overwrite=true"), run)
    with meter.step("load the base"):
        backend = session.load_base()
    with meter.step("estimate of the time") as row:
        row["says"] = "; ".join(lines(session, stages, backend))
    with meter.step("encode five photos") as row:
        data = session.config.model.recipe.data
        row["codes"] = [
            list(c.shape[1:]) for c in encode_photos(backend, session.subject.images, data, seed=0)
        ]
    del backend
    for stage in stages:
        with meter.step(f"stage {stage.name}, {args.steps} steps, batch 1") as row:
            train_stage(session, stage, grid=grid_requests(session, stage.name), base_samples=[])
        took = session.folder.record["stages"][stage.name]["seconds"]
        row["seconds_per_step"] = round(took / stage.numbers.steps, 2)
    if args.batch:
        draw(meter, args, session, stages[-1].name)
    return meter.rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the checkpoint (4.2 GB) and the run")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--photos", type=Path, help="folder of photos; painted pictures without it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="pictures sampled together; 0: sample none")
    parser.add_argument("--override", nargs="*", default=[], help="further settings")
    parser.add_argument("--out", type=Path, help="folder for the JSON and the table; default: WORK")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.photos = (args.photos or make_photos(args.work / "photos")).resolve()
    rows = measure(args)
    out = args.out or args.work
    out.mkdir(parents=True, exist_ok=True)
    title = (
        f"janus_pro_1b, random weights, {args.dtype}; {device_name(args.device)}; torch {torch.__version__}"
    )
    name = f"laptop_{args.dtype}_{args.device}"
    (out / f"{name}.json").write_text(
        json.dumps({"title": title, "command": sys.argv[1:], "steps": rows}, indent=1) + "\n"
    )
    (out / f"{name}.md").write_text(markdown(rows, title))


if __name__ == "__main__":
    main()
