"""Tables 1 to 4 of the paper on any base, with the published rows next to ours.

`python experiments/paper/run_all.py OUT` runs all rows on `benchmark=nanobench`. Settings after `--` are
passed to `python -m personalar.evaluate`: `-- benchmark=dreambench benchmark.path=DIR scorer=dreambench
trainer=gpu model=lumina_mgpt_7b_512`. Finished runs are not repeated, so the command resumes. `--ranks` sets
the ranks that correspond to the paper's 16, 64 and 256. `--lora-subjects cat vase` limits table 3 to some
subjects; they reuse their stage 1 of table 1. It writes OUT/tables.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from personalar.runs.benchmark import TITLES

PUBLISHED = Path(__file__).with_name("published.jsonl")
MAIN = ("two_stage", "without_class_name", "one_stage", "dreambooth")
PAPER_RANKS = (16, 64, 256)
MEASURES = ("dino", "clip_i", "clip_t")


def evaluate(out: Path, methods: tuple[str, ...], words: list[str]) -> int:
    """Run the benchmark command, which resumes; return its exit code."""
    command = [sys.executable, "-m", "personalar.evaluate", f"benchmark.methods=[{','.join(methods)}]"]
    return subprocess.run([*command, f"out='{out}'", *words], check=False).returncode


def means(out: Path, experiment: str) -> dict | None:
    """Return the record of an experiment's row in a finished benchmark, or None."""
    # Embeddings alone are stage 1 of two stages, so they are not run again.
    state = ("two_stage", "embedding") if experiment == "embedding_only" else (experiment, "transformer")
    path = out / "comparison.jsonl"
    if not path.is_file():
        return None
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return next((record for record in records if record["row"] == TITLES[state]), None)


def lora_folder(out: Path, rank: int, every: int) -> Path:
    return out / "table3" / f"lora_r{rank}_n{every}"


def full_matrices(out: Path, only: list[str], words: list[str]) -> int:
    """Evaluate the runs of table 1 on the subjects of table 3, for its last row; return the exit code."""
    folder = out / "table3" / "full"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "two_stage"
    if not link.is_symlink():
        link.symlink_to(Path("..", "..", "main", "two_stage"))
    return evaluate(folder, ("two_stage",), [*only, *words])


def table3(out: Path, ranks: list[int], subjects: list[str] | None, words: list[str]) -> int:
    """Run LoRA with every rank and spacing; return the number of failures."""
    only = [f"benchmark.subjects=[{','.join(subjects)}]"] if subjects else []
    first = f"reuse='{out / 'main' / 'two_stage'}/${{subject.name}}'"
    failures = full_matrices(out, only, words) != 0
    for rank, every in ((rank, every) for rank in ranks for every in (1, 2, 4)):
        adapter = "method.stages.transformer.lora"
        extra = [f"{adapter}.rank={rank}", f"{adapter}.every_n_layers={every}", first]
        failures += evaluate(lora_folder(out, rank, every), ("lora",), [*only, *words, *extra]) != 0
    return failures


def ours(out: Path, row: dict, ranks: list[int]) -> dict | None:
    """Return our record for a published row; None if it was not run."""
    if row["experiment"] is None:
        return None
    if row["experiment"] == "lora":
        rank = ranks[PAPER_RANKS.index(row["rank"])]
        return means(lora_folder(out, rank, row["every_n_layers"]), "lora")
    return means(out / "table3" / "full" if row["table"] == 3 else out / "main", row["experiment"])


def cell(record: dict | None, name: str) -> str:
    if record is None or record.get(name) is None:
        return "–"
    ends = record.get(f"{name}_interval")
    return f"{record[name]:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def tables(out: Path, ranks: list[int]) -> str:
    """Return tables 1 to 4 in Markdown, and our baselines for which the paper has no table."""
    rows = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    head = "| | published DINO | CLIP-I | CLIP-T | ours: fidelity | DINO | CLIP-I | CLIP-T | images |"
    lines = ["# The paper's tables, published and ours", "",
             "Published: arXiv 2504.13162, Lumina-mGPT 7B on DreamBench. Ours: this base and benchmark;",
             "elsewhere only the order of the rows can be compared, not the values."]  # fmt: skip
    for table in (1, 2, 3, 4):
        lines += ["", f"## Table {table}", "", head, "|---" * 9 + "|"]
        for row in (row for row in rows if row["table"] == table):
            found = ours(out, row, ranks)
            published = [cell(row, name) for name in MEASURES]
            mine = [cell(found, name) for name in ("fidelity", *MEASURES)]
            images = str(found["images"]) if found else "–"
            lines.append("| " + " | ".join([row["row"], *published, *mine, images]) + " |")
    lines += ["", "## Baselines on this base (the paper has no table of them)", "", head, "|---" * 9 + "|"]
    for name in ("one_stage", "dreambooth"):
        found = means(out / "main", name)
        mine = [cell(found, measure) for measure in ("fidelity", *MEASURES)]
        lines.append(f"| {name} | – | – | – | {' | '.join(mine)} | {found['images'] if found else '–'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--ranks", type=int, nargs=3, default=list(PAPER_RANKS), help="instead of the paper's 16 64 256"
    )
    parser.add_argument("--lora-subjects", nargs="+", help="subjects of table 3")
    parser.add_argument("--only-tables", action="store_true", help="write the tables of finished runs")
    parser.add_argument("words", nargs="*", help="settings of personalar.evaluate, after --")
    args = parser.parse_intermixed_args()
    failures = 0
    if not args.only_tables:
        failures += evaluate(args.out / "main", MAIN, args.words) != 0
        failures += table3(args.out.resolve(), args.ranks, args.lora_subjects, args.words)
    text = tables(args.out, args.ranks)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tables.md").write_text(text)
    print(text)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
