"""A benchmark: every subject learned by every method, one folder per run, then one table.

OUT/{method}/{subject}/     run folders; a run that is finished is not repeated
OUT/logs/{method}-{subject}.log     what each run printed
OUT/results.jsonl           one line per method, stage and subject
OUT/comparison.*            `comparison_page.py`
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import SimpleQueue

from personalar.config.command_line import quote
from personalar.config.commands import PROTOCOLS, BenchmarkConfig, EvaluateConfig
from personalar.config.compose import composed, conf_dir, group_options, read_config
from personalar.config.fingerprint import learning_settings, stage_settings
from personalar.core.files import write_text
from personalar.core.process import ENDS_WITH_STDIN, available_cores, visible_gpus
from personalar.core.run_folder import SHARED
from personalar.data import dreambench_plus
from personalar.data.dreambench import ATTRIBUTION, CREDITS_FILE, dataset_folder, find_subjects
from personalar.data.dreambench_plus import find_plus_subjects, plus_overrides
from personalar.reports.comparison import Row, State, is_run, read_states
from personalar.reports.comparison_page import write_comparison
from personalar.reports.comparison_table import markdown, verdicts
from personalar.runs.reuse import copy_files

ATTRIBUTIONS = {"dreambench": ATTRIBUTION, "dreambench_plus": dreambench_plus.ATTRIBUTION}
"""Printed, and in the notes of the comparison, by the kind of the benchmark."""
FIRST = "embedding"
"""The stage that the methods of a benchmark share."""
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
    """One subject learned by one method."""

    method: str
    subject: str
    folder: Path
    overrides: tuple[str, ...]
    """Of personalar.run, complete."""
    first_stage: str | None = None
    """The settings of its first stage, as text: runs of a subject with the same learn it once."""


def method_overrides(method: str) -> tuple[str, ...]:
    """Return the overrides of `method`. Raises ValueError where it is unknown."""
    conf = conf_dir()
    experiments = [name for name in group_options(conf, "experiment") if name.startswith("paper/")]
    if f"paper/{method}" in experiments:
        return (f"experiment=paper/{method}",)
    if method in group_options(conf, "method"):
        return (f"method={method}",)
    known = [*[name.removeprefix("paper/") for name in experiments], *group_options(conf, "method")]
    allowed = ", ".join(dict.fromkeys(known))  # some are both
    raise ValueError(f"benchmark.methods: {method!r} is not known; allowed: {allowed}")


def subject_overrides(benchmark: BenchmarkConfig) -> dict[str, tuple[str, ...]]:
    """Return the overrides of each subject, by name.

    Raises:
        ValueError, FileNotFoundError: a subject does not exist.
    """
    if benchmark.kind == "dreambench":
        assert benchmark.path is not None
        found = find_subjects(Path(benchmark.path).expanduser(), benchmark.subjects)
        common = ("+subject=dreambench", "samples.prompt_set=dreambench")
        return {
            subject.name: (
                *common,
                f"subject.path={quote(subject.folder.resolve())}",
                f"subject.live={str(subject.live).lower()}",
            )
            for subject in found
        }
    if benchmark.kind == "dreambench_plus":
        assert benchmark.path is not None
        chosen = find_plus_subjects(Path(benchmark.path).expanduser(), benchmark.subjects)
        return {subject.name: plus_overrides(subject) for subject in chosen}
    allowed = [name for name in group_options(conf_dir(), "subject") if name not in ("folder", "dreambench")]
    names = benchmark.subjects or allowed
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(f"benchmark.subjects: {unknown[0]!r} is not known; allowed: {', '.join(allowed)}")
    return {name: (f"+subject={name}",) for name in names}


def plan(config: EvaluateConfig, extra: Sequence[str] = ()) -> list[BenchRun]:
    """Return every run of the benchmark, subject by subject, methods in order; `extra` goes to all."""
    seeds = ",".join(str(seed) for seed in range(PROTOCOLS[config.protocol]))
    common = (f"samples.seeds=[{seeds}]", f"samples.kinds=[{','.join(config.kinds)}]")
    methods = {method: method_overrides(method) for method in config.benchmark.methods}
    subjects = subject_overrides(config.benchmark)
    anyone = next(iter(subjects.values()))  # methods differ alike for every subject
    starts = {method: first_stage((*anyone, *how, *common, *extra)) for method, how in methods.items()}
    return [
        BenchRun(
            method=method,
            subject=subject,
            folder=Path(config.out) / method / subject,
            overrides=(*who, *how, *common, *extra),
            first_stage=starts[method],
        )
        for subject, who in subjects.items()
        for method, how in methods.items()
    ]


def first_stage(overrides: Sequence[str]) -> str | None:
    """Return the settings that stage 1 of a run depends on, as text; None without stage 1."""
    settings = stage_settings(learning_settings(read_config(composed("run", overrides))), FIRST)
    return json.dumps(settings, sort_keys=True, default=str) if settings else None


def share(done: Sequence[BenchRun], run: BenchRun) -> tuple[str, ...]:
    """Copy pictures of the base from an earlier run of the subject; return overrides to reuse stage 1."""
    if not done or is_run(run.folder):
        return ()
    copy_files(done[0].folder, run.folder, SHARED)
    same = [other for other in done if run.first_stage and other.first_stage == run.first_stage]
    return (f"reuse={quote(same[0].folder)}",) if same else ()


def run_benchmark(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Do the runs that are not finished, unless only the table is asked for; then write the tables.

    Raises:
        SystemExit: after the table, when runs failed.
    """
    runs = plan(config, overrides)
    if attribution := ATTRIBUTIONS.get(config.benchmark.kind):
        print(attribution)
    failed = [] if config.task == "table" else run_all(runs, config)
    records = write_results(runs, config)
    print(markdown(records), *verdicts(records), sep="\n")
    print(f"page: {Path(config.out) / 'comparison.html'}")
    if failed:
        names = ", ".join(f"{run.method} {run.subject}" for run in failed)
        raise SystemExit(
            f"personalar.evaluate: {len(failed)} of {len(runs)} runs failed ({names}); "
            f"see {config.out}/logs; the same command does them again"
        )


def execute(command: Sequence[str], log: Path, *, gpu: str | None, threads: int) -> bool:
    """Run one command with its output in `log`; return whether it succeeded."""
    # What ends this process (kill, a closed terminal) must not leave a run behind that holds the lock.
    environment = {**os.environ, ENDS_WITH_STDIN: "1"}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", *command]
    with (
        log.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment
        ) as child,
    ):
        return child.wait() == 0


def place(run: BenchRun, launcher: str | None) -> tuple[str, ...]:
    """Return the overrides that put a run into its folder; with a launcher it is a sweep of one job there."""
    if launcher is None:
        return (f"hydra.run.dir={quote(run.folder)}",)
    where = (f"hydra.sweep.dir={quote(run.folder)}", "hydra.sweep.subdir=.")
    return ("hydra.mode=MULTIRUN", f"hydra/launcher={launcher}", *where)


def run_subject(
    runs: Sequence[BenchRun], config: EvaluateConfig, *, gpu: str | None, threads: int
) -> list[BenchRun]:
    """Do the runs of one subject in order, sharing what they have in common; return those that failed."""
    failed: list[BenchRun] = []
    done: list[BenchRun] = []
    for run in runs:
        shared = share(done, run)
        log = Path(config.out) / "logs" / f"{run.method}-{run.subject}.log"
        words = ["personalar.run", *run.overrides, *shared, *place(run, config.launcher)]
        succeeded = execute(words, log, gpu=gpu, threads=threads)
        (done if succeeded else failed).append(run)
        print(f"{run.method} {run.subject}: {'done' if succeeded else f'FAILED, see {log}'}", flush=True)
    return failed


def run_all(runs: Sequence[BenchRun], config: EvaluateConfig) -> list[BenchRun]:
    """Do every run, `config.jobs` subjects at a time; return those that failed. Failures stop nothing."""
    gpus: SimpleQueue[str | None] = SimpleQueue()
    for slot in range(config.jobs):
        found = visible_gpus()
        gpus.put(found[slot % len(found)] if found else None)
    threads = max(1, available_cores() // config.jobs)

    def subject(name: str) -> list[BenchRun]:
        gpu = gpus.get()
        try:
            return run_subject([run for run in runs if run.subject == name], config, gpu=gpu, threads=threads)
        finally:
            gpus.put(gpu)

    names = list(dict.fromkeys(run.subject for run in runs))
    with ThreadPoolExecutor(config.jobs) as pool:
        return list(chain.from_iterable(pool.map(subject, names)))


def collect(runs: Iterable[BenchRun]) -> list[Row]:
    """Return the rows of the table: base and text description once, then each method's stages.

    A method's earlier stages are shown for the first method only: the others share them or stop there.
    """
    shown_once = {("base", "subject"): "base", ("base", "description"): "text description"}
    found: dict[tuple[str, str], dict[str, State]] = {key: {} for key in shown_once}
    first = None
    for run in runs:
        if not (run.folder / "summary.json").is_file():
            continue
        first = first or run.method
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
    """Write results.jsonl and the comparison from the finished runs; return the table's records.

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
    notes = [f"protocol={config.protocol}: {PROTOCOLS[config.protocol]} image(s) for each prompt"]
    if attribution := ATTRIBUTIONS.get(config.benchmark.kind):
        notes.append(attribution.replace("\n", " "))
    if config.benchmark.kind == "dreambench":
        credits = dataset_folder(Path(config.benchmark.path or ".").expanduser()) / CREDITS_FILE
        if credits.is_file():
            shutil.copy(credits, out / CREDITS_FILE)
    title = TITLES.get((config.benchmark.methods[0], "transformer"))
    reference = next((row for row in rows if row.title == title), rows[-1])
    return write_comparison(rows, out, title=config.benchmark.name, reference=reference, notes=notes)
