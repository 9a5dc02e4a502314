"""Evaluate methods on a benchmark: `python -m personalar.evaluate benchmark=nanobench`.

    python -m personalar.evaluate benchmark=nanobench             every subject by every method, one table
    python -m personalar.evaluate calibrate benchmark=dreambench benchmark.path=DIR scorer=dreambench
    python -m personalar.evaluate table benchmark=nanobench             the table again, from what is finished

Settings of personalar.run (model=..., trainer=...) go to every run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from personalar.config.command_line import prepare_arguments
from personalar.config.commands import EvaluateConfig
from personalar.config.compose import conf_dir, read_config, register
from personalar.config.recipe import one_of
from personalar.config.run_config import RunConfig
from personalar.core.errors import told
from personalar.data.dreambench import ATTRIBUTION, find_subjects

TASKS = ("benchmark", "calibrate", "table")


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (arguments of this command, overrides for every run).

    The first plain word is the task. A scorer is for both.

    Raises:
        ValueError: an unknown task or setting, with what is allowed.
    """
    own_keys = {field.name for field in dataclasses.fields(EvaluateConfig)}
    own: list[str] = []
    for_runs: list[str] = []
    for index, word in enumerate(words):
        key, equals, _ = word.lstrip("+~").partition("=")
        if index == 0 and not equals and not word.startswith("-"):
            one_of("task", word, TASKS)
            own.append(f"task={word}")
            continue
        if key.split(".")[0] == "subject":
            raise ValueError("the benchmark names the subjects: use benchmark.subjects=[cat,dog]")
        mine = word.startswith("-") or not equals or key.split(".")[0] in own_keys or key.startswith("hydra")
        if mine:
            own.append(word)
        if not mine or key.split(".")[0] == "scorer":
            for_runs.append(word)
    conf = conf_dir()
    own = prepare_arguments(own, schema=EvaluateConfig, conf=conf, needs_subject=False)
    return own, prepare_arguments(for_runs, schema=RunConfig, conf=conf, needs_subject=False)


def photographs(config: EvaluateConfig) -> dict[str, Sequence]:
    """Return the photographs of every subject, opened."""
    from personalar.data.subject import read_folder

    if config.benchmark.kind != "dreambench":
        raise ValueError("calibrate needs photographs with a published row: use benchmark=dreambench")
    print(ATTRIBUTION)
    opened: dict[str, Sequence] = {}
    for subject in find_subjects(Path(config.benchmark.path or ".").expanduser(), config.benchmark.subjects):
        print(f"\n{subject.name}", flush=True)
        opened[subject.name] = read_folder(subject.folder)
    return opened


def calibrate(config: EvaluateConfig) -> bool:
    """Score real photographs against each other, compare with the published row, write calibration.json."""
    from personalar.core.files import write_atomic
    from personalar.scoring.calibrate import real_images_row, verdict
    from personalar.scoring.registry import load_scorers

    subjects = photographs(config)
    if config.scorer.clip is None or config.scorer.dino is None:
        raise ValueError("calibrate needs judges: scorer=dreambench, or scorer.clip=DIR scorer.dino=DIR")
    scorers = load_scorers(
        config.scorer.clip, config.scorer.dino, dino_preprocess=config.scorer.dino_preprocess
    )
    row = real_images_row(scorers, subjects)
    passed, sentence = verdict(row, config.benchmark.published, config.benchmark.tolerance)
    path = Path(config.out) / "calibration.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"passed": passed, "verdict": sentence, "published": config.benchmark.published, **row}
    write_atomic(path, (json.dumps(facts, indent=1) + "\n").encode())
    for name, value in row["scorers"].items():
        print(f"{name}: {value}")
    print(f"{row['photos']} photos of {len(row['subjects'])} subjects: DINO {row['dino']:.4f}, "
          f"CLIP-I {row['clip_i']:.4f}\n{sentence}\nwritten: {path}")  # fmt: skip
    return passed


def run_benchmark(config: EvaluateConfig, overrides: Sequence[str], *, only_table: bool = False) -> None:
    """Do what is not done yet, then write the tables.

    Raises:
        SystemExit: after the table, when runs failed.
    """
    from personalar.reports.comparison import markdown, verdicts
    from personalar.runs.benchmark import plan, run_all, write_results

    runs = plan(config, overrides)
    if config.benchmark.kind == "dreambench":
        print(ATTRIBUTION)
    failed = [] if only_table else run_all(runs, config)
    records = write_results(runs, config)
    print(markdown(records), *verdicts(records), sep="\n")
    print(f"page: {Path(config.out) / 'comparison.html'}")
    if failed:
        names = ", ".join(f"{run.method} {run.subject}" for run in failed)
        raise SystemExit(f"personalar.evaluate: {len(failed)} of {len(runs)} runs failed ({names}); "
                         f"see {config.out}/logs; the same command does them again")  # fmt: skip


def evaluate(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Do the task that the configuration names; a user's mistake ends in one sentence."""
    with told("personalar.evaluate"):
        if config.task == "calibrate":
            if not calibrate(config):
                raise SystemExit(1)
        else:
            run_benchmark(config, overrides, only_table=config.task == "table")


def main() -> None:
    """Entry point: settings of this command and of its runs are told apart, then Hydra composes."""
    with told("personalar.evaluate"):
        sys.argv[1:], overrides = split_arguments(sys.argv[1:])
    register()

    def launch(cfg: DictConfig) -> None:
        with told("personalar.evaluate"):
            config = read_config(cfg)
        evaluate(config, overrides)

    hydra.main(config_path=str(conf_dir()), config_name="evaluate", version_base="1.3")(launch)()


if __name__ == "__main__":
    main()
