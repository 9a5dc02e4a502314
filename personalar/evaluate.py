"""Evaluate methods on a benchmark: `python -m personalar.evaluate benchmark=nanobench`.

    python -m personalar.evaluate benchmark=nanobench             every subject by every method, one table
    python -m personalar.evaluate calibrate benchmark=dreambench benchmark.path=DIR scorer=dreambench
    python -m personalar.evaluate agreement benchmark=nanobench scorer.subject_crop=true
    python -m personalar.evaluate agreement ratings=DIR scorer=dreambench
    python -m personalar.evaluate table benchmark=nanobench             the table again, from what is finished

Settings of personalar.run (model=..., trainer=...) go to every run.
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
    """Return (arguments of this command, overrides for every run).

    The first plain word is the task. A scorer is for both.

    Raises:
        ValueError: an unknown task or setting, with what is allowed.
    """
    own_keys = {field.name for field in dataclasses.fields(EvaluateConfig)}
    own: list[str] = []
    for_runs: list[str] = []
    for index, word in enumerate(words):
        key, is_flag = key_of(word).split(".")[0], word.startswith("-") or "=" not in word
        if index == 0 and is_flag and not word.startswith("-"):
            one_of("task", word, TASKS)
            own.append(f"task={word}")
            continue
        if key == "subject":
            raise ValueError("the benchmark names the subjects: use benchmark.subjects=[cat,dog]")
        mine = is_flag or key in own_keys or key.startswith("hydra")
        if mine:
            own.append(word)
        if not mine or key == "scorer":
            for_runs.append(word)
    composed("run", for_runs)
    return own, for_runs


def evaluate(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Do the task that the configuration names; a user's mistake ends in one sentence."""
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
    """Entry point: split the settings of this command from those of its runs, then let Hydra compose."""
    with user_errors("personalar.evaluate"):
        sys.argv[1:], overrides = split_arguments(sys.argv[1:])
    start("evaluate", lambda config: evaluate(config, overrides))


if __name__ == "__main__":
    main()
