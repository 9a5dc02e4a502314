"""Compare methods on the packaged subjects, and print a table.

`python experiments/methods/run_all.py OUT --seeds 0 1`. Each run is a process with one thread in
OUT/ROW/SUBJECT-SEED. Finished runs are not repeated, so the command resumes; `--rows` and `--subjects` select
some. `--jobs 0` only prints the table. OUT/runs.jsonl has a line for every stage of every finished run; with
a copy of `results/runs.jsonl` there, these runs count as finished, and only missing ones are done.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean

from omegaconf import OmegaConf
from safetensors import safe_open

from personalar.config.compose import conf_dir
from personalar.reports.bootstrap import difference, interval

SUBJECTS = list(OmegaConf.load(conf_dir() / "benchmark" / "nanobench.yaml").subjects)
FIRST = "two_stages"
"""Rows with {first} reuse stage 1 of this row, or read its concept."""
ROWS = {
    FIRST: [],
    "one_embedding": ["model.recipe.identifier.rows=1"],
    "paper_rules": [
        'model.recipe.trained_weights=["model.layers.*.self_attn.[qkv]_proj.weight"]',
        "model.recipe.stages.transformer.image_token_ratio=0.5",
        "prior=none",
        "model.recipe.identifier.init=random",
        "model.recipe.identifier.rows=1",
    ],
    "one_stage": ["experiment=paper/one_stage"],
    "lora": ["method=lora", "reuse={first}"],
    "replay": ["prior=replay", "reuse={first}"],
    "dcoar": ["method=dcoar", "model.recipe.identifier.rows=1"],
    "direction": ["model.recipe.identifier.optimizer=direction"],
    "proxies": ["subject.proxies={proxies}"],
    "one_stage_lora": [
        "method=lora",
        "~method.stages.embedding",
        "model.recipe.stages.lora.steps=120",
        "model.recipe.stages.lora.identifier_lr=0.15",
    ],
}
TITLES = {
    "two_stages/base": "base alone",
    "two_stages/description": "base alone, text description",
    "two_stages/embedding": "textual inversion (stage 1)",
    "two_stages/transformer": "two stages",
    "one_embedding/embedding": "textual inversion, one embedding",
    "one_embedding/transformer": "two stages, one embedding",
    "paper_rules/embedding": "textual inversion, the paper's rules",
    "paper_rules/transformer": "two stages, the paper's rules",
    "one_stage/transformer": "one stage",
    "lora/transformer": "two stages, LoRA",
    "replay/transformer": "two stages, `prior=replay`",
    "dcoar/context": "DCoAR",
    "direction/embedding": "textual inversion, directions",
    "direction/transformer": "two stages, directions",
    "proxies/transformer": "two stages, self-proxies",
    "one_stage_lora/transformer": "one stage, LoRA",
}
"""Row of the table by row and stage of the runs."""
REFERENCE = "two_stages/transformer"
MEASURES = ("fidelity", "dino", "clip_i", "clip_t", "context_accuracy", "accessory_accuracy")
MEASURES += ("style_accuracy", "class_drift", "memorised", "images", "steps")


def call(arguments: list[str], log: Path) -> bool:
    """Run a module of the package in one thread; return True if it succeeded."""
    with log.open("w") as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    return done.returncode == 0


def run_one(out: Path, row: str, job: tuple[str, int]) -> None:
    """Run one row on one subject and seed, after the run that it starts from."""
    subject, seed = job
    folder, first = out / row / f"{subject}-{seed}", out / FIRST / f"{subject}-{seed}"
    proxies = out / "pictures" / f"{subject}-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, settings = folder.with_suffix(".log"), "".join(ROWS[row])
    if ("{first}" in settings or "{proxies}" in settings) and not (first / "summary.json").exists():
        run_one(out, FIRST, job)
        if not (first / "summary.json").exists():
            return  # it failed
    if "{proxies}" in settings and not proxies.exists():
        noun = json.loads((first / "summary.json").read_text())["noun"]
        prompts = f'prompts=["a photo of [V] {noun}"]'
        drawn = call(
            ["personalar.sample", f"concept={first}", prompts, "num_images=80", f"out={proxies}"], log
        )
        if not drawn:
            print(f"{row} {folder.name}: no proxies, see {log}", flush=True)
            return
    overrides = [text.format(first=first, proxies=proxies) for text in ROWS[row]]
    common = [
        f"+subject={subject}",
        "stage=both",
        f"seed={seed}",
        f"samples.seeds=[{seed}]",
        "samples.grid_every_steps=0",
        "trainer.threads=1",
        f"hydra.run.dir={folder}",
    ]
    if not call(["personalar.run", *common, *overrides], log):
        print(f"{row} {folder.name} failed, see {log}", flush=True)


def learned_numbers(concept: Path) -> int:
    """Return how many numbers a concept consists of."""
    total = 0
    for file in concept.rglob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        total += sum(map(math.prod, shapes))
    return total


def lines_of(row: str, folder: Path) -> list[dict]:
    """Return a line for each stage of a finished run that is in the table."""
    summary = json.loads((folder / "summary.json").read_text())
    subject, _, seed = folder.name.rpartition("-")
    lines, seconds = [], 0.0
    for stage, measures in ({"description": summary["description"] or {}} | summary["stages"]).items():
        seconds += measures.get("seconds", 0)
        if f"{row}/{stage}" in TITLES and measures:
            line = {"row": f"{row}/{stage}", "subject": subject, "seed": int(seed)}
            line |= {name: measures.get(name) for name in MEASURES}
            line["numbers"] = learned_numbers(folder / "stages" / stage / "concept")
            lines.append(line | {"train_seconds": round(seconds, 1)})
    return lines


def read_lines(out: Path) -> list[dict]:
    """Return the lines of OUT/runs.jsonl and of the finished runs, by row, subject and seed."""
    file = out / "runs.jsonl"
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    for row in ROWS:
        for summary in sorted((out / row).glob("*/summary.json")):
            lines += lines_of(row, summary.parent)
    order = list(TITLES)
    unique = {(order.index(line["row"]), line["subject"], line["seed"]): line for line in lines}
    return [unique[key] for key in sorted(unique)]


def by_subject(lines: list[dict], name: str, minus: dict | None = None) -> list[list[float]]:
    """Return a measure, one list per subject; `minus` has values to subtract by subject and seed."""
    groups: dict[str, list[float]] = {}
    for line in lines:
        key = (line["subject"], line["seed"])
        if minus is None or key in minus:
            groups.setdefault(key[0], []).append(line[name] - (minus[key] if minus else 0))
    return list(groups.values())


def short(value: float | None, ends: tuple[float, float] | None = None) -> str:
    """Return a number as in `.88 [.85, .91]`."""
    if value is None:
        return "–"
    texts = [f"{number:.2f}".replace("0.", ".", 1) for number in (value, *(ends or ()))]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if ends else texts[0]


def markdown(lines: list[dict]) -> str:
    """Return the table in Markdown."""
    head = ["", "runs", "fidelity", "difference", "CLIP-T", "accessories", "class drift", "memorised"]
    head += ["numbers", "s"]
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    minus = {(line["subject"], line["seed"]): line["fidelity"] for line in lines if line["row"] == REFERENCE}
    for row, group in groupby(lines, lambda line: line["row"]):
        runs = list(group)
        versus = difference(by_subject(runs, "fidelity", minus)) if row != REFERENCE and minus else None
        means = {name: mean(known) for name in runs[0] if (known := numbers_of(runs, name))}
        cells = [
            TITLES[row],
            str(len(runs)),
            short(means["fidelity"], interval(by_subject(runs, "fidelity"))),
            short(versus["mean"], (versus["low"], versus["high"])) if versus else "–",
            short(means["clip_t"], interval(by_subject(runs, "clip_t"))),
            *(short(means.get(name)) for name in ("accessory_accuracy", "class_drift", "memorised")),
            f"{means['numbers']:,.0f}",
            f"{means['train_seconds']:.0f}",
        ]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def subject_table(lines: list[dict]) -> str:
    """Return the fidelity of every subject (mean over seeds) and row in Markdown."""
    rows = list(dict.fromkeys(line["row"] for line in lines))
    table = ["| | " + " | ".join(TITLES[row] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for subject in sorted({line["subject"] for line in lines}):
        cells = [subject]
        for row in rows:
            own = [line["fidelity"] for line in lines if (line["row"], line["subject"]) == (row, subject)]
            cells.append(short(mean(own) if own else None))
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def numbers_of(lines: list[dict], name: str) -> list[float]:
    """Return the known values of a measure; subjects that are not animals have no accessories."""
    return [line[name] for line in lines if isinstance(line[name], int | float)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if args.jobs:
        done = {(line["row"].split("/")[0], line["subject"], line["seed"]) for line in read_lines(args.out)}
        for row in args.rows:
            jobs = [(subject, seed) for seed in args.seeds for subject in args.subjects]
            missing = [job for job in jobs if (row, *job) not in done]
            with ThreadPoolExecutor(args.jobs) as pool:
                list(pool.map(partial(run_one, args.out, row), missing))
    lines = read_lines(args.out)
    (args.out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(markdown(lines), subject_table(lines), sep="\n\n")


if __name__ == "__main__":
    main()
