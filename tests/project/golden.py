"""Record what runs of the shipped base compute, and compare two records.

    python tests/project/golden.py record OUT.json [--work DIR]
    python tests/project/golden.py compare BEFORE.json AFTER.json

A refactor must leave every line equal: loss curves, pixels, learned tensors. The numbers depend on the
machine and on torch, so both records must be made on one machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

SHORT = [
    "model.recipe.identifier.init=random",
    'samples.prompts=["a photo of a {}","a {} on the beach"]',
    "samples.grid_every_steps=5",
]
WORD, WEIGHTS, LORA, JOINT = (
    f"model.recipe.stages.{name}.steps=10" for name in ("embedding", "transformer", "lora", "joint")
)
TWO = [WORD, WEIGHTS, *SHORT]
ZERO2 = ["trainer=zero2", "trainer.accelerator=cpu"]


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start a run in `folder`."""
    command = [sys.executable, "-m", "personalar.run", *overrides, f"hydra.run.dir={folder}"]
    log = folder.with_suffix(".log").open("ab")
    return subprocess.Popen(
        command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    )


def run(folder: Path, *overrides: str) -> None:
    """Run to the end in `folder`. Raises RuntimeError with the end of the log when the run fails."""
    process = start(folder, *overrides)
    if process.wait():
        raise RuntimeError(f"{folder.name} failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")


def run_with_a_kill(folder: Path, *overrides: str) -> None:
    """Kill a run once stage 2 has a checkpoint, then run it to the end."""
    process = start(folder, *overrides)
    checkpoints = folder / "stages" / "transformer" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("*.ckpt")):
        time.sleep(0.02)
    if process.poll() is not None:
        raise RuntimeError(f"{folder.name} ended before it could be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(folder, *overrides)


def make_photographs(folder: Path) -> Path:
    """Write four JPEG pictures of different shapes; return `folder`."""
    folder.mkdir(parents=True)
    for index, size in enumerate([(640, 480), (480, 640), (500, 500), (800, 450)]):
        picture = Image.linear_gradient("L").resize(size).convert("RGB")
        box = [size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4]
        ImageDraw.Draw(picture).ellipse(box, fill=(200, 40 + 40 * index, 90))
        picture.save(folder / f"photo_{index}.jpg", quality=92)
    return folder


def digest(data: bytes) -> str:
    """Return a short hash of `data`."""
    return hashlib.sha256(data).hexdigest()[:16]


def curve(folder: Path) -> dict[str, str]:
    """Return the training loss by step over all parts of a stage's log."""
    losses = {}
    for path in sorted(folder.glob("part_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get("train/loss"):
                losses[row["step"]] = row["train/loss"]
    return losses


def facts(folder: Path) -> dict[str, object]:
    """Return what must not change: curves, pixels, learned tensors and scores."""
    images = sorted(folder.glob("images/*/*.png"))
    learned = sorted(folder.glob("stages/*/concept/**/*.safetensors"))
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    return {
        "losses": {path.name: curve(path) for path in sorted((folder / "logs").iterdir()) if path.is_dir()},
        "pixels": {str(p.relative_to(folder)): digest(Image.open(p).tobytes()) for p in images},
        "learned": {str(p.relative_to(folder)): digest(p.read_bytes()) for p in learned},
        "scores": digest(json.dumps(scores, sort_keys=True).encode()),
    }


def record(out: Path, work: Path) -> None:
    """Do every run and write what it computed."""
    cases = {
        "cat": lambda f: run(f, "+subject=cat", "stage=both"),
        "dog_stage_by_stage": lambda f: (
            run(f, "+subject=dog", "stage=embedding", *TWO),
            run(f, "+subject=dog", "stage=transformer", *TWO),
        ),
        "folder": lambda f: run(
            f,
            "+subject=folder",
            f"subject.path={make_photographs(work / 'photos')}",
            "subject.noun=dog",
            *TWO,
        ),
        "lora": lambda f: run(f, "+subject=cat", "method=lora", WORD, LORA, *SHORT),
        "joint": lambda f: run(f, "+subject=cat", "method=joint", JOINT, *SHORT),
        "zero2": lambda f: run(f, "+subject=cat", *ZERO2, *TWO),
        "killed": lambda f: run_with_a_kill(f, "+subject=bear", "trainer.checkpoint_every_steps=2", *TWO),
        "not_killed": lambda f: run(f, "+subject=bear", *TWO),
    }
    found = {}
    for name, case in cases.items():
        started = time.perf_counter()
        case(work / name)
        found[name] = facts(work / name)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    if found["killed"] != found["not_killed"]:
        print("killed: the resumed run is NOT equal to the uninterrupted one")


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Return {"a/b": leaf} for nested dicts."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}/{key}"))
    return flat


def compare(before: Path, after: Path) -> int:
    """Print what differs; return the number of differences."""
    old, new = (flatten(json.loads(path.read_text())) for path in (before, after))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    for name in names:
        print(f"{name}: {old.get(name)} -> {new.get(name)}")
    print(f"{len(old)} facts before, {len(new)} after, {len(names)} differ")
    return len(names)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, help="folder for the runs; by default a temporary one")
    arguments = parser.parse_args()
    if arguments.what == "compare":
        raise SystemExit(min(compare(*arguments.files), 1))
    work = arguments.work or Path(tempfile.mkdtemp(prefix="golden-"))
    work.mkdir(parents=True, exist_ok=True)
    record(arguments.files[0], work)


if __name__ == "__main__":
    main()
