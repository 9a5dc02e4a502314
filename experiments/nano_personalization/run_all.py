"""Personalize every packaged subject, and print a table.

`python experiments/nano_personalization/run_all.py OUT --seeds 0 1`. Every job is a process with one thread.
Finished runs are not repeated, so the command resumes. Settings after `--` are passed to every run:
`-- method=joint`. It writes results.jsonl (one summary per line) and prints the table in README.md.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from omegaconf import OmegaConf

from personalar.config.compose import conf_dir

SUBJECTS = list(OmegaConf.load(conf_dir() / "benchmark" / "nanobench.yaml").subjects)


def run_one(out: Path, subject: str, seed: int, extra: list[str]) -> dict | None:
    folder = out / f"{subject}-{seed}"
    command = [
        sys.executable,
        "-m",
        "personalar.run",
        f"+subject={subject}",
        "stage=both",
        f"seed={seed}",
        f"samples.seeds=[{seed}]",
        "trainer.threads=1",
        f"hydra.run.dir={folder}",
        *extra,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        print(f"{subject}-{seed} failed:\n{done.stderr[-2000:]}", flush=True)
        return None
    summary = json.loads((folder / "summary.json").read_text())
    print(
        f"{subject}-{seed}: " + ", ".join(f"{s} {v['fidelity']:.2f}" for s, v in summary["stages"].items()),
        flush=True,
    )
    return {"seed": seed, **summary}


def cell(values: list) -> str:
    known = [v for v in values if v is not None]
    return f"{mean(known):.2f}" if known else "-"


def table(rows: list[dict]) -> str:
    """Return a Markdown table with a line per subject (mean over seeds), and the mean over subjects."""
    last = next(s for s in ("transformer", "embedding") if all(s in r["stages"] for r in rows))
    columns = {
        "text": lambda r: (r.get("description") or {}).get("fidelity"),
        "stage 1": lambda r: r["stages"].get("embedding", {}).get("fidelity"),
        "both": lambda r: r["stages"][last]["fidelity"],
        "context": lambda r: r["stages"][last]["context_accuracy"],
        "accessory": lambda r: r["stages"][last]["accessory_accuracy"],
        "class drift": lambda r: r["stages"][last]["class_drift"],
        "CLIP-T base": lambda r: r["stages"]["base"]["clip_t"],
        "CLIP-T both": lambda r: r["stages"][last]["clip_t"],
        "seconds": lambda r: r["total_seconds"],
    }
    lines = ["| subject | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(r["subject"] for r in rows):
        own = [r for r in rows if r["subject"] == name]
        lines.append(
            f"| {name} | " + " | ".join(cell([get(r) for r in own]) for get in columns.values()) + " |"
        )
    lines.append(
        "| **mean** | " + " | ".join(f"**{cell([get(r) for r in rows])}**" for get in columns.values()) + " |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("extra", nargs="*", help="overrides for every run, after --")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(subject, seed) for seed in args.seeds for subject in args.subjects]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = [r for r in pool.map(lambda job: run_one(args.out, *job, args.extra), jobs) if r]
    (args.out / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
