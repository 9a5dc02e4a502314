"""Several runs from one command (`-m`), and the objective of each.

A failed job leaves `error.txt` in its folder and counts as not a number; the others go on, and the command
ends with a table of the finished ones, a comparison page, and a non-zero exit code. A job that was refused in
the folder of another run leaves `error_<job>.txt` in the sweep's folder.
"""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from personalar.config.fields import check_folder_names
from personalar.config.run_config import RunConfig
from personalar.config.scorer_config import judged
from personalar.core.errors import raised_by, user_errors
from personalar.core.process import global_rank
from personalar.core.run_lock import HYDRA_FILES, HYDRA_FOLDER, InUseError, check_run_folder, is_empty

Objective = float | tuple[float, ...] | None
"""None: another process of the run is the one that returns it."""
ERROR_FILE, JOBS_FILE = "error.txt", "jobs.jsonl"


class SearchError(RuntimeError, CompactHydraException):
    """Ends a search; Hydra shows its sentence without a traceback."""


def explain_searches() -> None:
    """Let a search of which no trial has a result end in one sentence; Optuna raises ValueError there."""
    multirun = Hydra.multirun

    def explained(self: Hydra, *args: Any, **kwargs: Any) -> Any:
        try:
            return multirun(self, *args, **kwargs)
        except ValueError as error:
            if raised_by(error) != "optuna":
                raise
            raise SearchError(
                f"personalar.run: the search ended without a result ({error}): if all trials failed, "
                f"{ERROR_FILE} in the folder of each says why; fix that and start the same command again"
            ) from None

    Hydra.multirun = explained  # type: ignore[method-assign]  # Hydra has no hook for it


def check_devices(devices: Any) -> None:
    """Raise ValueError for a sweep over runs with more than one device."""
    if devices != 1:
        raise ValueError(
            f"-m with trainer.devices={devices} is refused: each process of a distributed run starts with "
            "this command line and would begin a sweep of its own; sweep with trainer.devices=1 (one run for "
            "each GPU: hydra/launcher=submitit_slurm), or run the settings one after the other without -m"
        )


def join_sweep(hydra_config: Any, devices: Any) -> None:
    """Name the sweep as W&B's group. Raises ValueError where a job wants more than one device."""
    check_devices(devices)
    os.environ.setdefault("WANDB_RUN_GROUP", Path(hydra_config.sweep.dir).name)  # W&B's own name for it


def searches(hydra_config: Any) -> bool:
    """Return whether the sweeper learns from results (Optuna)."""
    return not hydra_config.sweeper._target_.endswith("BasicSweeper")


def check_objective(config: RunConfig) -> None:
    """Raise ValueError for a search led by judges that do not know the pictures."""
    if names := judged(config.objective):
        config.scorer.check_decides(
            f"what a search by objective=[{','.join(names)}] tries",
            photographs=config.subject.photographs,
            otherwise="a sweep without hydra/sweeper=..., which tries all that is listed",
        )


def objective_value(summary: Mapping[str, Any], names: Sequence[str]) -> Objective:
    """Return the value for a sweeper to maximise: measures of the last stage, "*" multiplies them.

    Returns:
        One number, or one for each name; not a number where a measure was not taken (scorer=none).

    Raises:
        ValueError: a name that summary.json does not know.
    """
    measures = list(summary["stages"].values())[-1]
    known = {name for name, value in measures.items() if not isinstance(value, dict)}

    def value(name: str) -> float:
        factors = [factor.strip() for factor in name.split("*")]
        unknown = [factor for factor in factors if factor not in known]
        if unknown:
            raise ValueError(
                f"objective: {unknown[0]!r} is not a measure; allowed: {', '.join(sorted(known))}"
            )
        found = [measures[factor] for factor in factors]
        return math.nan if None in found else math.prod(found)

    values = tuple(value(name) for name in names)
    return values[0] if len(values) == 1 else values


def keep_sweeping(
    job: Callable[[], Objective],
    run_dir: Path,
    count: int,
    *,
    searches: bool = False,
    sweep_dir: Path | None = None,
) -> Objective:
    """Return what `job` returns; when it fails, keep the reason in `run_dir` and return `count` NaNs.

    Args:
        searches: the sweeper learns from results (Optuna): it needs exceptions, and no NaN.
        sweep_dir: folder for the reason where `run_dir` is the folder of another run.

    Raises:
        SearchError: the job failed and the sweeper searches.
    """
    before = marks(run_dir)
    try:
        worth = job()
        if searches and (worth is None or np.isnan(worth).any()):
            raise ValueError("a search needs an objective, and this run measured none: choose a scorer")
        (run_dir / ERROR_FILE).unlink(missing_ok=True)
        return worth
    except (Exception, SystemExit) as error:
        known = isinstance(error, SystemExit)
        alone = is_empty(run_dir, ERROR_FILE) and not isinstance(error.__context__, InUseError)
        own = alone or marks(run_dir) != before
        path = run_dir / ERROR_FILE
        if sweep_dir is not None and not own:
            path = sweep_dir / f"error_{HydraConfig.get().job.num}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(error) if known else traceback.format_exc(), encoding="utf-8")
        print(f"FAILED, the sweep goes on: {error} ({path})", flush=True)
        if searches:
            raise SearchError(f"personalar.run: a trial failed: {error} ({path})") from None
        return math.nan if count == 1 else (math.nan,) * count


def note_job(sweep_dir: Path, run_dir: Path, overrides: Sequence[str]) -> None:
    """Add a job to `jobs.jsonl` of its sweep, which says what each folder is; once for each folder.

    A line is written at once: jobs may run side by side.
    """
    if run_dir.resolve() == sweep_dir.resolve():
        return
    table = sweep_dir / JOBS_FILE
    line = json.dumps({"folder": os.path.relpath(run_dir, sweep_dir), "overrides": list(overrides)}) + "\n"
    if table.is_file() and line in table.read_text(encoding="utf-8").splitlines(keepends=True):
        return
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with table.open("a", encoding="utf-8") as stream:
        stream.write(line)


def marks(folder: Path) -> dict[Path, int]:
    """Return when (ns) each file at or below `folder` was written that says that a job began, or failed."""
    started = f"{HYDRA_FOLDER}/{HYDRA_FILES[0]}"  # anew by every job that is accepted
    names = (started, ERROR_FILE, "error_*.txt")
    return {path: path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


class SweepReport(Callback):
    """Hydra's callback around runs: checks before the first, a comparison after a sweep."""

    failed: tuple[str, ...] = ()
    """Of the last sweep, the folders of the jobs that failed."""

    def __init__(self) -> None:
        """Know of no earlier sweep in the folder."""
        self.before: dict[Path, int] = {}

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the run folder before Hydra writes into it."""
        with user_errors("personalar.run"):
            check_folder_names(config)
            check_run_folder(Path(config.hydra.run.dir), leads=global_rank() == 0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check before the first job starts."""
        with user_errors("personalar.run"):
            check_devices(config.trainer.devices)
            check_folder_names(config)
            check_run_folder(Path(config.hydra.sweep.dir), leads=global_rank() == 0)
        self.before = marks(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the finished runs of this sweep and name the failed ones.

        Hydra reports a job's end in the launcher's process, so this one looks at the folders.
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
