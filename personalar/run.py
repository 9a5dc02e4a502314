"""Personalize a base model on a subject: `python -m personalar.run +subject=cat stage=both`."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from personalar.config.command_line import prepare_arguments
from personalar.config.compose import conf_dir, read_config, register
from personalar.config.run_config import RunConfig
from personalar.core.errors import user_errors
from personalar.core.process import global_rank, keep_memory
from personalar.core.run_lock import locked, refusable
from personalar.runs.personalize import personalize, prepare
from personalar.runs.sweep import (
    Objective,
    SweepReport,
    check_objective,
    join_sweep,
    keep_sweeping,
    objective_value,
    searches,
)


def run_one(cfg: DictConfig) -> Objective | None:
    """Run one composed configuration and return its worth; a user's mistake ends in one sentence."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    leads, sweeps = global_rank() == 0, hydra_config.mode == RunMode.MULTIRUN
    with user_errors("personalar.run"), locked(run_dir, leads=leads):
        with refusable(run_dir) if leads and not sweeps else nullcontext():
            if sweeps:
                join_sweep(hydra_config, cfg.trainer.devices)
            config = read_config(cfg)
            if sweeps and searches(hydra_config):
                check_objective(config)
            prepared = prepare(config, run_dir)
        if prepared is not None:
            command = ["python", "-m", "personalar.run", *hydra_config.overrides.task]
            personalize(*prepared, command=shlex.join(command))
        if not leads:  # another process writes the summary, perhaps later, and is the one that is asked
            return None
        return objective_value(json.loads((run_dir / "summary.json").read_text()), config.objective)


class Job:
    """The function that Hydra calls with each composed configuration, here or in a launcher's process."""

    def __call__(self, cfg: DictConfig) -> Objective | None:
        """Run it; in a sweep a failure is kept and the sweep goes on."""
        hydra_config = HydraConfig.get()
        if hydra_config.mode != RunMode.MULTIRUN:
            return run_one(cfg)
        run_dir = Path(hydra_config.runtime.output_dir)
        learns = searches(hydra_config)
        return keep_sweeping(lambda: run_one(cfg), run_dir, len(cfg.objective), searches=learns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Bring our resolvers along to a launcher's process, which composes before it calls."""
        return restore_job, ()


def restore_job() -> Job:
    """Return a job in a process that has not called `main`."""
    register()
    return Job()


def main() -> None:
    """Entry point: check the arguments, then let Hydra compose the configuration."""
    keep_memory()
    conf = conf_dir()
    with user_errors("personalar.run"):
        sys.argv[1:] = prepare_arguments(sys.argv[1:], schema=RunConfig, conf=conf, needs_subject=True)
    register()
    from personalar.run import Job  # not __main__'s: a launcher's process must be able to import it

    hydra.main(config_path=str(conf), config_name="run", version_base="1.3")(Job())()
    if SweepReport.failed:
        raise SystemExit(
            f"personalar.run: {len(SweepReport.failed)} jobs failed: {', '.join(SweepReport.failed)}"
        )


if __name__ == "__main__":
    main()
