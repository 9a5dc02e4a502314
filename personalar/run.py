"""Personalize a base model on a subject: `python -m personalar.run +subject=cat stage=both`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from personalar.config.command_line import as_value, launch
from personalar.config.compose import conf_dir, read_config
from personalar.config.fields import key_of
from personalar.config.fingerprint import unread
from personalar.config.run_config import RunConfig
from personalar.core.errors import user_errors
from personalar.core.files import read_json, write_atomic
from personalar.core.process import end_with_parent, global_rank, keep_memory
from personalar.core.run_lock import HYDRA_FILES, HYDRA_FOLDER, locked, refusable
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


def run_one(cfg: DictConfig) -> Objective:
    """Do the run of one composed configuration and return its objective.

    Raises:
        SystemExit: a user error.
    """
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    leads, sweeps = global_rank() == 0, hydra_config.mode == RunMode.MULTIRUN
    # The lock comes before everything that writes to the folder.
    with user_errors("personalar.run"), locked(run_dir, leads=leads):
        # The folder of a refused run is deleted if it is empty. In a sweep error.txt is written there.
        with refusable(run_dir, leads=leads and not sweeps):
            if sweeps:
                join_sweep(hydra_config, cfg.trainer)
            config = read_config(cfg, RunConfig)
            if sweeps and searches(hydra_config):
                check_objective(config)
            if found := unread(config, hydra_config.overrides.task):
                if not sweeps:  # in a sweep over methods, a setting may be for one of them only
                    raise ValueError(found)
                print(f"note: {found}")
            command = command_words(hydra_config)
            prepared = prepare(config, run_dir, command)
        if leads:
            keep_configuration(run_dir, cfg, finished=prepared is None)
        if prepared is not None:
            personalize(*prepared, command=shlex.join(command))
        if not leads:  # rank zero writes the summary, maybe later, and returns the objective
            return None
        return objective_value(read_json(run_dir / "summary.json"), config.objective)


def keep_configuration(run_dir: Path, cfg: DictConfig, *, finished: bool) -> None:
    """Write .hydra/ as Hydra would, but only after the run was accepted.

    Hydra itself would overwrite the files of a finished run even if the new command is refused, so
    conf/run.yaml switches that off.

    Args:
        finished: the run was already finished; its files are kept, and only their time is updated.
    """
    folder, composed = run_dir / HYDRA_FOLDER, HydraConfig.instance().cfg
    if finished and (folder / HYDRA_FILES[0]).is_file():
        (folder / HYDRA_FILES[0]).touch()  # a sweep finds its jobs by this time
        return
    for name, part in zip(HYDRA_FILES, (cfg, composed, HydraConfig.get().overrides.task), strict=True):
        write_atomic(folder / name, OmegaConf.to_yaml(part).encode())


def command_words(hydra_config: Any) -> list[str]:
    """Return the words of the command line that repeats a run, for messages and the report."""
    places = {source.provider: source.path for source in hydra_config.runtime.config_sources}
    flags = {
        "--config-path": places["main"] if places["main"] != str(conf_dir()) else None,
        "--config-dir": places.get("command-line"),
        "--config-name": hydra_config.job.config_name if hydra_config.job.config_name != "run" else None,
    }
    given = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    # Of Hydra's own settings only those that change where a run reads or writes.
    kept = ["hydra.searchpath"]
    kept += [] if hydra_config.mode == RunMode.MULTIRUN else ["hydra.run.dir"]
    own = [word for word in hydra_config.overrides.hydra if key_of(word) in kept and word[:2] != "++"]
    if hydra_config.mode == RunMode.MULTIRUN:  # the command of this job alone, in its folder
        own.append(f"hydra.run.dir={as_value(hydra_config.runtime.output_dir)}")
    return ["python", "-m", "personalar.run", *given, *own, *hydra_config.overrides.task]


def job(cfg: DictConfig) -> Objective:
    """Do the run of one composed configuration; in a sweep, write an error to a file and continue.

    It is the task function of Hydra, called in this process or in a launcher's.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return run_one(cfg)
    run_dir, sweep_dir = Path(hydra_config.runtime.output_dir), Path(hydra_config.sweep.dir)
    learns = searches(hydra_config)
    return keep_sweeping(
        lambda: run_one(cfg),
        run_dir,
        len(cfg.objective),
        searches=learns,
        stops=hydra_config.launcher._target_.endswith("BasicLauncher"),
        sweep_dir=sweep_dir,
    )


def main() -> None:
    """Entry point."""
    end_with_parent()
    keep_memory()
    # Not __main__.job: a launcher's process must be able to import the function by its name.
    from personalar.run import job

    launch("run", job)
    if SweepReport.failed:
        raise SystemExit(
            f"personalar.run: failed jobs ({len(SweepReport.failed)}): {', '.join(SweepReport.failed)}"
        )


if __name__ == "__main__":
    main()
