"""Evaluate methods on a benchmark: `python -m personalar.evaluate benchmark=nanobench`.

    python -m personalar.evaluate benchmark=nanobench         all methods on all subjects, one table
    python -m personalar.evaluate -m benchmark=nanobench hydra/launcher=joblib hydra.launcher.n_jobs=2
    python -m personalar.evaluate table benchmark=nanobench   only the table, from finished runs
    python -m personalar.evaluate calibrate benchmark=dreambench benchmark.path=DIR scorer=dreambench
    python -m personalar.evaluate agreement benchmark=nanobench scorer.subject_crop=true
    python -m personalar.evaluate agreement ratings=DIR scorer=dreambench

Settings of personalar.run (model=..., trainer=...) are passed to every run. With -m every subject is a job of
Hydra's launcher.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from personalar.config.command_line import launch, quote, read_flags
from personalar.config.commands import TASKS, EvaluateConfig
from personalar.config.compose import composed, read_config
from personalar.config.fields import key_of, one_of, parse
from personalar.core.errors import user_errors
from personalar.core.process import take_gpu


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command-line words into arguments of this command and overrides for its runs.

    Args:
        words: the command line; a first word without "=" is the task.

    Returns:
        (arguments of this command, overrides for every run). `scorer` is in both.

    Raises:
        ValueError: an unknown task or setting, or one that the benchmark determines.
    """
    flags, _ = read_flags(words)
    own_keys = {field.name for field in dataclasses.fields(EvaluateConfig)}
    own: list[str] = []
    for_runs: list[str] = []
    for index, word in enumerate(words):
        # Only the first part of a key: a group such as model= also includes model.path=.
        key = key_of(word).split(".")[0]
        is_flag = word.startswith("-") or ("=" not in word and not word.startswith("~"))
        if index == 0 and is_flag and not word.startswith("-"):
            one_of("task", word, TASKS)
            own.append(f"task={word}")
            continue
        # The benchmark adds subject= to every run, and this one would replace it.
        if key == "subject":
            raise ValueError("a benchmark has several subjects: use benchmark.subjects=[cat,dog]")
        # These would replace the method of every row, whose title would stay.
        if key_of(word) in ("method", "stage", "experiment"):
            raise ValueError(
                f"{word}: the rows of a benchmark are its methods: use benchmark.methods=[two_stage,lora]"
            )
        if key_of(word) in ("samples.seeds", "samples.kinds"):
            raise ValueError(
                f"{word}: a benchmark samples all kinds, and the seeds of protocol=paper (one image per "
                "prompt) or protocol=dreambooth (four): leave the setting out"
            )
        mine = is_flag or key in own_keys or key.startswith("hydra")
        if mine:
            own.append(word)
        if not mine or key == "scorer":
            for_runs.append(word)
    for_runs += search_path(words, flags.config_dir)
    composed("run", for_runs)  # raises an error for a wrong setting now, not in the first run
    return own, for_runs


def search_path(words: Sequence[str], config_dir: str | None) -> list[str]:
    """Return the override with which the runs also find the user's own options; empty without a folder."""
    folders = [f"file://{Path(config_dir).absolute()}"] if config_dir else []
    for word in words:
        if key_of(word) == "hydra.searchpath" and (override := parse(word)) is not None:
            value: Any = override.value()
            folders += value if isinstance(value, list) else [value]
    return [f"hydra.searchpath=[{','.join(map(quote, folders))}]"] if folders else []


def parallel(own: Sequence[str], config: EvaluateConfig, subjects: Sequence[str]) -> list[str]:
    """Return the arguments `own` with one job for each subject.

    Raises:
        ValueError: the task is not a benchmark.
    """
    if config.task != "benchmark":
        raise ValueError(f"-m is for a benchmark, each subject of which is a job; got the task {config.task}")
    words = [word for word in own if key_of(word) != "benchmark.subjects"]
    return [*words, "benchmark.subjects=" + ",".join(f"[{quote(name)}]" for name in subjects)]


def evaluate(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Do the task of `config`.

    Args:
        overrides: settings for every run.

    Raises:
        SystemExit: failed runs, or a calibration that does not agree.
        ValueError: `overrides` for a task without runs.
    """
    unused = [word for word in overrides if key_of(word).split(".")[0] not in ("scorer", "hydra")]
    if config.task in ("calibrate", "agreement") and unused:
        raise ValueError(
            f"{unused[0]} is for the runs of a benchmark, and {config.task} has none: leave it out"
        )
    if config.task == "calibrate":
        from personalar.runs.calibration import calibrate

        if not calibrate(config):
            raise SystemExit(1)
    elif config.task == "agreement":
        from personalar.runs.judge_agreement.agreement import agreement

        agreement(config)
    else:
        from personalar.runs.benchmark import plan, run_all, show_results

        runs = plan(config, overrides)
        if config.task == "benchmark":
            run_all(runs)
        show_results(runs, config)


class Task:
    """The task function of Hydra: the whole command, or with -m the runs of one subject.

    It is a class because launchers pickle it.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        """Pass `overrides` to every run."""
        self.overrides = list(overrides)

    def __call__(self, cfg: DictConfig) -> None:
        """Do the task of one composed configuration."""
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            with user_errors("personalar.evaluate"):
                evaluate(read_config(cfg, EvaluateConfig), self.overrides)
            return
        from personalar.runs.benchmark import plan, run_all

        take_gpu()
        run_all(plan(read_config(cfg, EvaluateConfig), self.overrides))


def main() -> None:
    """Entry point."""
    # Not __main__.Task: a launcher's process must be able to import the class by its name.
    from personalar.evaluate import Task

    with user_errors("personalar.evaluate"):
        # Hydra would reject settings of personalar.run, so they are removed from sys.argv first.
        sys.argv[1:], overrides = split_arguments(sys.argv[1:])
        flags, _ = read_flags(sys.argv[1:])
    if not flags.multirun or flags.help or flags.hydra_help or flags.cfg or flags.info:
        launch("evaluate", Task(overrides))
        return
    from personalar.runs.benchmark import plan, show_results

    with user_errors("personalar.evaluate"):
        config = read_config(composed("evaluate", flags.overrides, config_dir=flags.config_dir))
        runs = plan(config, overrides)
        sys.argv[1:] = parallel(sys.argv[1:], config, list(dict.fromkeys(run.subject for run in runs)))
    launch("evaluate", Task(overrides))
    with user_errors("personalar.evaluate"):
        show_results(runs, config)


if __name__ == "__main__":
    main()
