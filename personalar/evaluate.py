"""Evaluate methods on a benchmark: `python -m personalar.evaluate benchmark=nanobench`.

    python -m personalar.evaluate benchmark=nanobench         all methods on all subjects, one table
    python -m personalar.evaluate table benchmark=nanobench   only the table, from finished runs
    python -m personalar.evaluate calibrate benchmark=dreambench benchmark.path=DIR scorer=dreambench
    python -m personalar.evaluate agreement benchmark=nanobench scorer.subject_crop=true
    python -m personalar.evaluate agreement ratings=DIR scorer=dreambench

Settings of personalar.run (model=..., trainer=...) are passed to every run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from personalar.config.command_line import start
from personalar.config.commands import TASKS, EvaluateConfig
from personalar.config.compose import composed
from personalar.config.fields import key_of, one_of
from personalar.core.errors import user_errors


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command-line words into arguments of this command and overrides for its runs.

    Args:
        words: the command line; a first word without "=" is the task.

    Returns:
        (arguments of this command, overrides for every run). `scorer` is in both.

    Raises:
        ValueError: an unknown task or setting; the message has the allowed ones.
    """
    own_keys = {field.name for field in dataclasses.fields(EvaluateConfig)}
    own: list[str] = []
    for_runs: list[str] = []
    for index, word in enumerate(words):
        # Only the first part of a key: a group such as model= also includes model.path=.
        key, is_flag = key_of(word).split(".")[0], word.startswith("-") or "=" not in word
        if index == 0 and is_flag and not word.startswith("-"):
            one_of("task", word, TASKS)
            own.append(f"task={word}")
            continue
        # The benchmark adds subject= to every run, and this one would replace it.
        if key == "subject":
            raise ValueError("a benchmark has several subjects: use benchmark.subjects=[cat,dog]")
        mine = is_flag or key in own_keys or key.startswith("hydra")
        if mine:
            own.append(word)
        if not mine or key == "scorer":
            for_runs.append(word)
    composed("run", for_runs)  # raises an error for a wrong setting now, not in the first run
    return own, for_runs


def evaluate(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Do the task of `config`.

    Args:
        overrides: settings for every run.

    Raises:
        SystemExit: a user error, failed runs, or a calibration that does not agree.
    """
    with user_errors("personalar.evaluate"):
        if config.task == "calibrate":
            from personalar.runs.calibration import calibrate

            if not calibrate(config):
                raise SystemExit(1)
        elif config.task == "agreement":
            from personalar.runs.judge_agreement.agreement import agreement

            agreement(config)
        else:
            from personalar.runs.benchmark import run_benchmark

            run_benchmark(config, overrides)


def main() -> None:
    """Entry point."""
    # Hydra would reject settings of personalar.run, so they are removed from sys.argv first.
    with user_errors("personalar.evaluate"):
        sys.argv[1:], overrides = split_arguments(sys.argv[1:])
    start("evaluate", lambda config: evaluate(config, overrides))


if __name__ == "__main__":
    main()
