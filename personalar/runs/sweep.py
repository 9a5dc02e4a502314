"""Sweeps: several runs from one command (`-m`), and the objective of each.

A failed job writes `error.txt` to its folder, and its objective is NaN. The other jobs continue. At the end
the command prints a table of the finished jobs, writes a comparison page, and exits with a non-zero code. A
job whose folder belongs to another run writes `error_<job>.txt` to the folder of the sweep.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from personalar.config.fields import check_folder_names
from personalar.config.run_config import RunConfig
from personalar.config.scorer_config import judged
from personalar.core.errors import user_errors
from personalar.core.process import global_rank, take_gpu
from personalar.core.run_lock import HYDRA_FILES, HYDRA_FOLDER, InUseError, check_run_folder, is_empty

Objective = float | tuple[float, ...] | None
"""Value of a job for the sweeper; None in processes above rank zero."""
ERROR_FILE = "error.txt"


def check_devices(trainer: Any, launcher: Any) -> None:
    """Raise ValueError for a sweep over runs of several processes, unless SLURM starts all of them.

    Args:
        trainer: settings with `devices` (processes per machine) and `num_nodes` (machines).
        launcher: settings of Hydra's launcher.
    """
    wanted = (trainer.devices, trainer.num_nodes)
    if wanted == (1, 1):
        return
    if not launcher._target_.endswith("SlurmLauncher"):
        raise ValueError(
            f"-m with trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes} is not "
            "possible: each process of a distributed run starts with this command line and would start its "
            "own sweep; sweep with one device, do the runs one after the other without -m, or on a SLURM "
            "cluster use hydra/launcher=submitit_slurm (docs/cluster.md)"
        )
    started = (launcher.tasks_per_node, launcher.nodes)
    if started != wanted:
        raise ValueError(
            f"hydra.launcher.tasks_per_node={started[0]} hydra.launcher.nodes={started[1]}, but "
            f"trainer.devices={wanted[0]} trainer.num_nodes={wanted[1]}: SLURM must start one process per "
            "device, so set both pairs to the same values"
        )


def join_sweep(hydra_config: Any, trainer: Any) -> None:
    """Take a GPU; make the folder's name the W&B group. Raises ValueError as `check_devices` does."""
    check_devices(trainer, hydra_config.launcher)
    if trainer.devices == 1:  # a distributed run assigns the GPUs to its processes
        take_gpu()
    os.environ.setdefault("WANDB_RUN_GROUP", Path(hydra_config.sweep.dir).name)  # read by wandb.init


def searches(hydra_config: Any) -> bool:
    """Return whether the sweeper is a search that uses objectives (Optuna), not a grid."""
    # By the built-in sweeper's name: any other, a user's too, is expected to use objectives.
    return not hydra_config.sweeper._target_.endswith("BasicSweeper")


def check_objective(config: RunConfig) -> None:
    """Raise ValueError if a search would be decided by scorers that were not trained on such pictures."""
    if names := judged(config.objective):
        config.scorer.check_decides(
            f"a search by objective=[{','.join(names)}]",
            photographs=config.subject.photographs,
            otherwise="a sweep without hydra/sweeper=..., which tries all listed values",
        )


def objective_value(summary: Mapping[str, Any], names: Sequence[str]) -> Objective:
    """Return the value that a sweeper maximises, from the measures of the last stage.

    Args:
        summary: the content of summary.json.
        names: measures, or products of measures such as "fidelity*clip_t".

    Returns:
        One number, or one per name; NaN if a measure is missing (scorer=none).
    """
    measures = list(summary["stages"].values())[-1]

    def value(name: str) -> float:
        found = [measures.get(factor.strip()) for factor in name.split("*")]
        return math.nan if None in found else math.prod(found)

    values = tuple(value(name) for name in names)
    return values[0] if len(values) == 1 else values


def keep_sweeping(
    job: Callable[[], Objective],
    run_dir: Path,
    count: int,
    *,
    searches: bool = False,
    stops: bool = True,
    sweep_dir: Path | None = None,
) -> Objective:
    """Return the result of `job`. If it fails, write the error to `run_dir` and return NaN.

    Args:
        count: number of objectives, and so of NaN.
        searches: the sweeper is a search: a failed trial must raise an exception, as Optuna rejects NaN.
        stops: a signal that stops this process stops the sweep (all jobs are in one process).
        sweep_dir: folder for the error if `run_dir` belongs to another run.

    Raises:
        CompactHydraException: the job failed and the sweeper is a search; Hydra prints its message alone.
    """
    before = marks(run_dir)
    try:
        worth = job()
        # Processes above rank zero of a distributed run have no objective.
        if searches and global_rank() == 0 and (worth is None or np.isnan(worth).any()):
            raise ValueError("a search needs an objective, but this run has none: choose a scorer")
        (run_dir / ERROR_FILE).unlink(missing_ok=True)
        return worth
    except (Exception, SystemExit) as error:
        # `user_errors` turns user errors into SystemExit with the message; for bugs the traceback is needed.
        known = isinstance(error, SystemExit)
        # A number is the exit status of a signal, such as 130 of Ctrl-C; user errors have text.
        if stops and isinstance(error, SystemExit) and isinstance(error.code, int):
            raise
        # The error file belongs into this job's own folder: one that is new, or whose .hydra was written
        # again because the job was accepted. Another folder contains another run.
        alone = is_empty(run_dir, ERROR_FILE) and not isinstance(error.__context__, InUseError)
        own = alone or marks(run_dir) != before
        path = run_dir / ERROR_FILE
        if sweep_dir is not None and not own:
            path = sweep_dir / f"error_{HydraConfig.get().job.num}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(error) if known else traceback.format_exc(), encoding="utf-8")
        print(f"FAILED, the sweep continues: {error} ({path})", flush=True)
        if searches:
            raise CompactHydraException(f"personalar.run: a trial failed: {error} ({path})") from None
        return math.nan if count == 1 else (math.nan,) * count


def marks(folder: Path) -> dict[Path, int]:
    """Return the times (ns) of all files below `folder` that mark the start or the failure of a job."""
    started = f"{HYDRA_FOLDER}/{HYDRA_FILES[0]}"  # written again by every job that is accepted
    names = (started, ERROR_FILE, "error_*.txt")
    return {path: path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


class SweepReport(Callback):
    """Callback of Hydra: checks before a run or a sweep, and a comparison after a sweep."""

    failed: tuple[str, ...] = ()
    """Folders of the failed jobs of the last sweep. A class attribute, because Hydra creates the object."""

    def __init__(self) -> None:
        self.before: dict[Path, int] = {}

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the run folder before Hydra writes into it."""
        with user_errors("personalar.run"):
            check_folder_names(config)
            check_run_folder(Path(config.hydra.run.dir), leads=global_rank() == 0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check before the first job starts."""
        with user_errors("personalar.run"):
            check_devices(config.trainer, config.hydra.launcher)
            check_folder_names(config)
            check_run_folder(Path(config.hydra.sweep.dir), leads=global_rank() == 0)
        self.before = marks(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the finished runs of this sweep, and store the folders of the failed ones.

        Hydra calls `on_job_end` in the launcher's process, so this process finds the results by the files
        that are new in the folder of the sweep.
        """
        from personalar.reports.comparison import rows_of_runs
        from personalar.reports.comparison_page import write_comparison
        from personalar.reports.comparison_table import markdown

        folder = Path(config.hydra.sweep.dir)
        new = sorted(path for path, written in marks(folder).items() if self.before.get(path) != written)
        failed = [path.parent if path.name == ERROR_FILE else path for path in new if path.suffix == ".txt"]
        SweepReport.failed = tuple(map(str, failed))
        jobs = [path.parent.parent for path in new if path.parent.name == HYDRA_FOLDER]
        if runs := [job for job in jobs if job not in failed and (job / "summary.json").is_file()]:
            print(markdown(write_comparison(rows_of_runs(runs, folder), folder, title=folder.name)))
            print(f"page: {folder / 'comparison.html'}")
