"""Compare methods on the packaged subjects, and print a table.

`python experiments/methods/run_all.py OUT --seeds 0 1`. Each run is a process with one thread in
OUT/ROW/SUBJECT-SEED. Finished runs are not repeated, so the command resumes; `--rows` and `--subjects` select
some. `--jobs 0` only prints the table of the finished runs. It writes OUT/results.jsonl, one line per row.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean

from omegaconf import OmegaConf
from safetensors import safe_open

from personalar.config.compose import conf_dir
from personalar.reports.bootstrap import interval
from personalar.reports.comparison import Row, State, read_states, table

SUBJECTS = list(OmegaConf.load(conf_dir() / "benchmark" / "nanobench.yaml").subjects)
FIRST = "two_stages"
"""Rows with {first} reuse stage 1 of this row, or read its concept."""
ROWS = {
    FIRST: [],
    "one_embedding": ["model.recipe.identifier.rows=1"],
    "one_stage": ["experiment=paper/one_stage"],
    "lora": ["method=lora", "reuse={first}"],
    "replay": ["prior=replay", "reuse={first}"],
    "dcoar": ["method=dcoar", "model.recipe.identifier.rows=1"],
    "direction": ["model.recipe.identifier.optimizer=direction"],
    "proxies": ["subject.proxies={proxies}"],
}
TITLES = {
    "two_stages/embedding": "textual inversion (stage 1)",
    "two_stages/transformer": "two stages",
    "one_embedding/embedding": "textual inversion, one embedding",
    "one_embedding/transformer": "two stages, one embedding",
    "one_stage/transformer": "one stage",
    "lora/transformer": "two stages, LoRA",
    "replay/transformer": "two stages, `prior=replay`",
    "dcoar/context": "DCoAR",
    "direction/embedding": "textual inversion, directions",
    "direction/transformer": "two stages, directions",
    "proxies/transformer": "two stages, self-proxies",
}
"""Row of the table by row and stage of the runs."""


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
    """Run one row on one subject and seed, if that is not done yet."""
    subject, seed = job
    folder, first = out / row / f"{subject}-{seed}", out / FIRST / f"{subject}-{seed}"
    proxies = out / "pictures" / f"{subject}-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    if "{proxies}" in "".join(ROWS[row]) and not proxies.exists():
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


def learned_numbers(state: State) -> int:
    """Return how many numbers the concept of a state consists of."""
    files = (state.run_dir / "stages" / state.stage / "concept").rglob("*.safetensors")
    total = 0
    for file in files:
        with safe_open(file, "np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        total += sum(map(math.prod, shapes))
    return total


def rows_of(out: Path) -> list[Row]:
    """Return the rows whose runs are finished, in the order of `TITLES`."""
    rows = []
    for name, title in TITLES.items():
        row, stage = name.split("/")
        folders = sorted(path.parent for path in (out / row).glob("*/summary.json"))
        found = [read_states(folder).get((stage, "subject")) for folder in folders]
        if states := tuple(state for state in found if state is not None):
            rows.append(Row(title=title, states=states))
    return rows


def records_of(rows: list[Row]) -> list[dict]:
    """Return the records of the comparison, with learned numbers and seconds of training of all stages."""
    reference = next(row for row in rows if row.title == TITLES["two_stages/transformer"])
    records = table(rows, reference)
    for row, record in zip(rows, records, strict=True):
        record["numbers"] = learned_numbers(row.states[0])
        spent = [sum(stage["seconds"] for stage in upto(state)) for state in row.states]
        record["train_seconds"] = mean(spent)
        for measure in ("fidelity", "clip_t"):
            record[f"{measure}_interval"] = interval(by_subject(row, measure))
        record["protocol"] = None  # names every run
    return records


def by_subject(row: Row, measure: str) -> list[list[float]]:
    """Return the values of a measure, one list per subject with the pictures of all seeds."""
    groups: dict[str, list[float]] = {}
    for (subject, _, _), value in row.pictures(measure).items():
        groups.setdefault(subject, []).append(value)
    return list(groups.values())


def upto(state: State) -> list[dict]:
    """Return the stages of a run up to that of the state."""
    names = list(state.summary["stages"])
    return [state.summary["stages"][name] for name in names[: names.index(state.stage) + 1]]


def short(value: float | None, ends: tuple[float, float] | None = None) -> str:
    """Return a number as in `.88 [.85, .91]`."""
    if value is None:
        return "–"
    texts = [f"{number:.2f}".replace("0.", ".", 1) for number in (value, *(ends or ()))]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if ends else texts[0]


def markdown(records: list[dict]) -> str:
    """Return the table in Markdown."""
    head = ["", "runs", "fidelity", "difference", "CLIP-T", "accessories", "class drift", "memorised"]
    head += ["numbers", "s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for record in records:
        versus = record["versus"].get("likeness")
        cells = [
            record["row"],
            str(record["subjects"]),
            short(record["fidelity"], record["fidelity_interval"]),
            short(versus["mean"], (versus["low"], versus["high"])) if versus else "–",
            short(record["clip_t"], record["clip_t_interval"]),
            *(short(record[name]) for name in ("accessory_accuracy", "class_drift", "memorised")),
            f"{record['numbers']:,}",
            f"{record['train_seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if args.jobs:
        jobs = [(subject, seed) for seed in args.seeds for subject in args.subjects]
        # Row by row: later rows need the runs of the first one.
        for row in args.rows:
            with ThreadPoolExecutor(args.jobs) as pool:
                list(pool.map(partial(run_one, args.out, row), jobs))
    records = records_of(rows_of(args.out))
    (args.out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(markdown(records))


if __name__ == "__main__":
    main()
