"""A run folder made of drawings and invented scores, in the exact format of a real one."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from personalar.core.png import save_png, save_sample
from personalar.core.types import PromptSpec, Sample
from personalar.scoring.score_file import merge_scores

PROMPTS = (
    PromptSpec(text="a photo of a {}", category="plain"),
    PromptSpec(text="a {} in the snow", category="recontext", context="snow"),
    PromptSpec(text="a {} on the beach", category="recontext", context="beach"),
    PromptSpec(text="a {} in the jungle", category="recontext", context="jungle"),
    PromptSpec(text="a {} wearing a red hat", category="accessory", accessory="hat", colour="red"),
    PromptSpec(text="a blue {}", category="property", colour="blue"),
)
LEVELS = {"base": (0.52, 0.27, 0.3), "embedding": (0.7, 0.26, 0.55), "transformer": (0.86, 0.255, 0.9)}

Draw = Callable[[str, PromptSpec, int], Image.Image]


def scribble(stage: str, spec: PromptSpec, seed: int) -> Image.Image:
    """Draw something cheap that differs by stage, prompt and seed."""
    rng = random.Random(f"{stage} {spec.text} {seed}")
    colour = tuple(rng.randrange(40, 220) for _ in range(3))
    image = Image.new("RGB", (48, 48), colour)
    ImageDraw.Draw(image).ellipse((8, 12, 40, 44), fill=tuple(255 - value for value in colour))
    return image


def _score_lines(sample: Sample, rng: random.Random) -> list[dict]:
    dino, clip_t, right = LEVELS[sample.stage]
    if sample.kind == "class":
        dino = 0.52 + 0.04 * (sample.stage != "base")
    if sample.kind == "description":
        dino = 0.6
    common = {
        "stage": sample.stage,
        "kind": sample.kind,
        "prompt": sample.prompt,
        "template": sample.spec.text,
        "seed": sample.seed,
        "category": sample.spec.category,
        "image": f"images/{sample.stage}/{sample.path.name}",
    }
    text_line = {**common, "scorer": "clip_t", "value": clip_t + rng.uniform(-0.02, 0.02), "clip_text": "..."}
    if sample.spec.category == "recontext":
        text_line["context_top1"] = rng.random() < right + 0.1
    if sample.spec.category == "accessory":
        text_line["accessory_top1"] = rng.random() < right
    likeness = [{**common, "scorer": "dino", "value": dino + rng.uniform(-0.04, 0.04)}]
    return [*likeness, {**common, "scorer": "clip_i", "value": dino + 0.1}, text_line]


def _run_json(noun: str, stages: tuple[str, ...], rendered: bool) -> dict:
    bounds = {"dino": 0.5, "clip_i": 0.6, "images": 20}, {"dino": 0.9, "clip_i": 0.95, "images": 20}
    return {
        "format_version": 1,
        "subject": noun,
        "noun": noun,
        "live": True,
        "rendered": rendered,
        "description": f"a grey {noun} with orange stripes",
        "model": "nano",
        "method": "paper",
        "stage": "both" if len(stages) == 3 else stages[-1],
        "command": f"python -m personalar.run +subject={noun} stage=both",
        "started": "2026-11-21T08:00:00+00:00",
        "total_seconds": 214.6,
        "peak_memory_bytes": 1_310_000_000,
        "device": "cpu, 2 threads",
        "versions": {"personalar": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6", "python": "3.11.7"},
        "warnings": []
        if rendered
        else ["The nano base knows only its rendered world: expect a likeness, not a photograph."],
        "scorers": {"clip": "package://nano/clip#0123456789ab", "dino": "package://nano/dino#ba9876543210"},
        "stages": {
            stage: {
                "steps": {"base": 0, "embedding": 300, "transformer": 60}[stage],
                "seconds": 31.5 * (stage != "base"),
            }
            for stage in stages
        },
        "bounds": {"floor": bounds[0], "ceiling": bounds[1]}
        if rendered
        else {"floor": None, "ceiling": None},
    }


def _write_losses(run_dir: Path, stage: str, steps: int, rng: random.Random) -> None:
    rows = ["epoch,step,train/loss,val/dino"]
    for step in range(1, steps + 1):
        rows.append(f"0,{step},{2 + 1.6 * math.exp(-step / steps * 3) + rng.gauss(0, 0.08):.4f},")
        if step % 50 == 0:
            rows.append(f"0,{step},,0.6")
    folder = run_dir / "logs" / stage / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


def make_run(
    run_dir: Path,
    *,
    noun: str = "cat",
    stages: tuple[str, ...] = ("base", "embedding", "transformer"),
    rendered: bool = True,
    scored: bool = True,
    prompts: tuple[PromptSpec, ...] = PROMPTS,
    seeds: tuple[int, ...] = (0,),
    draw: Draw = scribble,
) -> Path:
    """Write a finished run (without summary and report) to `run_dir` and return it."""
    rng = random.Random(0)
    run_dir.mkdir(parents=True, exist_ok=True)
    run = _run_json(noun, stages, rendered)
    (run_dir / "run.json").write_text(json.dumps(run))
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "config.yaml").write_text("subject:\n  noun: cat\nstage: both\n")
    for index in range(5):
        save_png(draw("reference", PROMPTS[0], index), run_dir / "references" / f"{index}.png")
    concept = {
        "format_version": 1,
        "identifier": {"[V]": 9004},
        "stage": stages[-1],
        "base": {"name": "nano", "revision": "abc"},
    }
    (run_dir / "concept").mkdir()
    (run_dir / "concept" / "concept.json").write_text(json.dumps(concept))
    lines = []
    for stage in stages:
        kinds = {"subject": noun if stage == "base" else f"[V] {noun}", "class": noun}
        if stage == "base":
            kinds = {"subject": noun, "description": f"grey {noun} with orange stripes"}
        for kind, words in kinds.items():
            for spec in prompts:
                for seed in seeds:
                    prompt = spec.text.replace("{}", words)
                    sample = Sample(
                        stage=stage,
                        prompt=prompt,
                        kind=kind,
                        seed=seed,
                        spec=spec,
                        image=draw(f"{stage} {kind}", spec, seed),
                    )
                    lines += _score_lines(save_sample(sample, run_dir), rng)
        if stage != "base":
            _write_losses(run_dir, stage, run["stages"][stage]["steps"], rng)
    if scored:
        merge_scores(run_dir / "scores.jsonl", lines)
    return run_dir
