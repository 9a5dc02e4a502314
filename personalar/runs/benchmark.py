"""A benchmark: one run per method and subject, and a table of all results.

OUT/{method}/{subject}/     run folders; finished runs are not repeated
OUT/logs/{method}-{subject}.log     output of each run; with .unfinished added until it has succeeded
OUT/results.jsonl           one line per method, stage and subject
OUT/comparison.*            see `reports/comparison_page.py`
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personalar.config.command_line import quote
from personalar.config.commands import PROTOCOLS, BenchmarkConfig, EvaluateConfig
from personalar.config.compose import composed, conf_dir, group_options, read_config
from personalar.config.fingerprint import learning_settings, stage_settings
from personalar.config.subject_config import NOT_RENDERED
from personalar.core.files import write_text
from personalar.core.process import ENDS_WITH_STDIN
from personalar.core.run_folder import SHARED
from personalar.data import dreambench_plus
from personalar.data.dreambench import ATTRIBUTION, CREDITS_FILE, dataset_folder, find_subjects
from personalar.data.dreambench_plus import fetch_plus, find_plus_subjects, plus_overrides
from personalar.reports.comparison import Row, State, is_run, read_states
from personalar.reports.comparison_page import write_comparison
from personalar.reports.comparison_table import markdown, verdicts
from personalar.runs.reuse import copy_files

ATTRIBUTIONS = {"dreambench": ATTRIBUTION, "dreambench_plus": dreambench_plus.ATTRIBUTION}
"""Printed, and in the notes of the comparison, by the kind of the benchmark."""
FIRST = "embedding"
"""Name of stage 1, which several methods have in common."""
KINDS = ("subject", "class", "description", "prior", "unrelated")
"""Kinds of samples, see `samples.kinds`."""
TITLES = {
    ("two_stage", "embedding"): "textual inversion (stage 1)",
    ("two_stage", "transformer"): "two stages",
    ("embedding_only", "embedding"): "textual inversion",
    ("without_class_name", "transformer"): "two stages, no class name",
    ("lora", "transformer"): "two stages, LoRA",
    ("one_stage", "transformer"): "one stage",
    ("dreambooth", "transformer"): "one-stage DreamBooth",
}


@dataclass(frozen=True, kw_only=True)
class BenchRun:
    """A run of the benchmark: one method on one subject."""

    method: str
    subject: str
    folder: Path
    log: Path
    """File with the output of the run."""
    overrides: tuple[str, ...]
    """All arguments for personalar.run, except the run folder."""
    first_stage: str | None = None
    """The settings of its stage 1, as JSON; runs of a subject with equal settings train it once."""

    @property
    def unfinished(self) -> Path:
        """A file that exists from the start of the run until it has succeeded."""
        return self.log.with_name(f"{self.log.name}.unfinished")


def method_overrides(method: str) -> tuple[str, ...]:
    """Return the overrides that select `method`, an experiment of the paper or an option of `method`."""
    if f"paper/{method}" in group_options(conf_dir(), "experiment"):
        return (f"experiment=paper/{method}",)
    return (f"method={method}",)


def subject_overrides(benchmark: BenchmarkConfig) -> dict[str, tuple[str, ...]]:
    """Return the overrides of each subject, by its name.

    Raises:
        ValueError, FileNotFoundError: an unknown subject, or a missing data set.
    """
    if benchmark.kind == "dreambench":
        assert benchmark.path is not None
        found = find_subjects(Path(benchmark.path).expanduser(), benchmark.subjects)
        return {
            name: ("+subject=dreambench", f"subject.path={quote(folder.resolve())}")
            for name, folder in found.items()
        }
    if benchmark.kind == "dreambench_plus":
        folder = Path(benchmark.path).expanduser() if benchmark.path else fetch_plus(benchmark.revision)
        chosen = find_plus_subjects(folder, benchmark.subjects)
        return {subject.name: plus_overrides(subject) for subject in chosen}
    allowed = [name for name in group_options(conf_dir(), "subject") if name not in NOT_RENDERED]
    names = benchmark.subjects or allowed
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(f"benchmark.subjects: unknown {unknown[0]!r}; allowed: {', '.join(allowed)}")
    return {name: (f"+subject={name}",) for name in names}


def plan(config: EvaluateConfig, extra: Sequence[str] = ()) -> list[BenchRun]:
    """Return all runs, subject by subject with the methods in order; `extra` are overrides for all."""
    seeds = ",".join(str(seed) for seed in range(PROTOCOLS[config.protocol]))
    common = [f"samples.seeds=[{seeds}]", f"samples.kinds=[{','.join(KINDS)}]"]
    if config.scorer.judges:
        common.append("scorer.outside=true")
    methods = {method: method_overrides(method) for method in config.benchmark.methods}
    subjects = subject_overrides(config.benchmark)
    # Composing takes half a second. The difference between methods is the same for every subject, so one
    # subject is enough to find out which methods have the same stage 1.
    anyone = next(iter(subjects.values()))
    starts = {method: first_stage((*anyone, *how, *common, *extra)) for method, how in methods.items()}
    return [
        BenchRun(
            method=method,
            subject=subject,
            folder=Path(config.out) / method / subject,
            log=Path(config.out) / "logs" / f"{method}-{subject}.log",
            overrides=(*who, *how, *common, *extra),
            first_stage=starts[method],
        )
        for subject, who in subjects.items()
        for method, how in methods.items()
    ]


def first_stage(overrides: Sequence[str]) -> str | None:
    """Return the settings that determine stage 1 of a run, as JSON; None if its method has no stage 1."""
    settings = stage_settings(learning_settings(read_config(composed("run", overrides))), FIRST)
    return json.dumps(settings, sort_keys=True, default=str) if settings else None


def share(done: Sequence[BenchRun], run: BenchRun) -> tuple[str, ...]:
    """Copy the base's pictures and the image codes from an earlier run of the same subject.

    Returns:
        The override that reuses stage 1 of an earlier run with the same settings; empty without one.
    """
    if not done or is_run(run.folder):
        return ()
    copy_files(done[0].folder, run.folder, SHARED)
    same = [other for other in done if run.first_stage and other.first_stage == run.first_stage]
    return (f"reuse={quote(same[0].folder)}",) if same else ()


def run_all(runs: Sequence[BenchRun]) -> None:
    """Do all unfinished runs one after the other; a failed run does not stop the others."""
    done: dict[str, list[BenchRun]] = {}
    for run in runs:
        earlier = done.setdefault(run.subject, [])
        words = [*run.overrides, *share(earlier, run), f"hydra.run.dir={quote(run.folder)}"]
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.unfinished.touch()
        succeeded = execute(["personalar.run", *words], run.log)
        if succeeded:
            run.unfinished.unlink()
            earlier.append(run)
        print(f"{run.method} {run.subject}: {'done' if succeeded else f'FAILED, see {run.log}'}", flush=True)


def execute(command: Sequence[str], log: Path) -> bool:
    """Run a Python module with its output in the file `log`; return whether it succeeded.

    Args:
        command: module and arguments.
    """
    # If this process is killed, the child must end too; otherwise it keeps its run folder locked.
    environment = {**os.environ, ENDS_WITH_STDIN: "1"}
    words = [sys.executable, "-m", *command]
    with (
        log.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment
        ) as child,
    ):
        return child.wait() == 0


def show_results(runs: Sequence[BenchRun], config: EvaluateConfig) -> None:
    """Write and print the results of all finished runs.

    Raises:
        SystemExit: some runs failed.
        FileNotFoundError: no run is finished.
    """
    if attribution := ATTRIBUTIONS.get(config.benchmark.kind):
        print(attribution)
    records = write_results(runs, config)
    print(markdown(records), *verdicts(records), sep="\n")
    print(f"page: {Path(config.out) / 'comparison.html'}")
    failed = [run for run in runs if run.unfinished.exists()]
    if failed and config.task == "benchmark":
        names = ", ".join(f"{run.method} {run.subject}" for run in failed)
        raise SystemExit(
            f"personalar.evaluate: {len(failed)} of {len(runs)} runs failed ({names}); "
            f"see {config.out}/logs; the same command repeats them"
        )


def collect(runs: Sequence[BenchRun]) -> list[Row]:
    """Return the rows of the table: base and text description once, then the stages of each method.

    Earlier stages are shown for the first method only; other methods have the same stage 1, or end with it.
    """
    shown_once = {("base", "subject"): "base", ("base", "description"): "text description"}
    found: dict[tuple[str, str], dict[str, State]] = {key: {} for key in shown_once}
    first = runs[0].method
    for run in runs:
        if not (run.folder / "summary.json").is_file():
            continue
        states = read_states(run.folder)
        last = [stage for stage, kind in states if kind == "subject"][-1]
        for (stage, kind), state in states.items():
            if stage == "base":
                found.setdefault((stage, kind), {}).setdefault(run.subject, state)
            elif stage == last or run.method == first:
                found.setdefault((run.method, stage), {})[run.subject] = state
    titles = {**TITLES, **shown_once}
    return [
        Row(title=titles.get(key) or " ".join(key), states=tuple(states.values()))
        for key, states in found.items()
        if states
    ]


def write_results(runs: Sequence[BenchRun], config: EvaluateConfig) -> list[dict]:
    """Write results.jsonl and the comparison of all finished runs; return the records of the table.

    Raises:
        FileNotFoundError: no run is finished.
    """
    rows = collect(runs)
    if not rows:
        raise FileNotFoundError(f"no finished run in {config.out}: see {config.out}/logs, then run again")
    out = Path(config.out)
    lines = []
    for row in rows:
        for state in row.states:
            facts = {name: state.run.get(name) for name in ("subject", "model", "scorers")}
            lines.append(
                {"row": row.title, "stage": state.stage, "kind": state.kind, **facts, **state.measures}
            )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(out / "results.jsonl", text)
    notes = []
    if attribution := ATTRIBUTIONS.get(config.benchmark.kind):
        notes.append(attribution.replace("\n", " "))
    if config.benchmark.kind == "dreambench":
        credits = dataset_folder(Path(config.benchmark.path or ".").expanduser()) / CREDITS_FILE
        if credits.is_file():
            shutil.copy(credits, out / CREDITS_FILE)
    # The reference of the paired differences: the result of the first method.
    folder = Path(config.out) / config.benchmark.methods[0]
    learned = [row for row in rows if row.states[0].stage != "base"]
    reference = [row for row in learned if row.states[0].run_dir.parent == folder][-1:] or rows
    return write_comparison(rows, out, title=config.benchmark.name, reference=reference[-1], notes=notes)
