"""Sweeps: objectives, failing jobs, several devices, and real sweeps through the launchers."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest_run import compose_config
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image
from synthetic_run import make_run
from test_cli import command

from personalar.config.compose import conf_dir
from personalar.reports.summary import write_summary
from personalar.run import command_words
from personalar.runs.sweep import (
    SweepReport,
    check_devices,
    join_sweep,
    keep_sweeping,
    objective_value,
)

SUMMARY = {"stages": {"base": {"dino": 0.1}, "transformer": {"dino": 0.5, "clip_t": 0.4, "intervals": {}}}}
TINY = (
    "model.recipe.stages.embedding.steps=1", "model.recipe.stages.embedding.batch=1",
    "model.recipe.stages.transformer.steps=1", "model.recipe.stages.transformer.batch=1",
    "model.recipe.data.crops_per_photo=0", "model.recipe.data.copies_per_photo=1",
    "model.recipe.stages.transformer.replay_ratio=0", "samples.grid_every_steps=0",
    "samples.prompts=['a {}']", "samples.kinds=[subject]", "trainer.threads=1",
)  # fmt: skip


def test_the_objective_is_a_product_of_measures_of_the_last_stage() -> None:
    assert objective_value(SUMMARY, ["dino*clip_t"]) == pytest.approx(0.2)
    assert objective_value(SUMMARY, ["dino", "clip_t"]) == (0.5, 0.4)
    unscored = {"stages": {"base": {"dino": None, "clip_t": None}}}
    assert math.isnan(objective_value(unscored, ["dino*clip_t"]))
    assert compose_config("+subject=cat").objective == ["dino*clip_t"]


def test_a_failure_is_kept_and_is_not_a_number(tmp_path: Path, capsys) -> None:
    def dies() -> float:
        raise RuntimeError("out of memory")

    assert math.isnan(keep_sweeping(dies, tmp_path / "job", 1))
    assert "Traceback" in (tmp_path / "job" / "error.txt").read_text()
    assert "FAILED, the sweep continues: out of memory" in capsys.readouterr().out
    assert len(keep_sweeping(dies, tmp_path / "job", 2)) == 2

    def mistaken() -> float:
        raise SystemExit("personalar.run: no such folder")

    keep_sweeping(mistaken, tmp_path / "job", 1)
    assert (tmp_path / "job" / "error.txt").read_text() == "personalar.run: no such folder"
    with pytest.raises(CompactHydraException, match="no such folder"):  # Optuna marks the trial as failed
        keep_sweeping(mistaken, tmp_path / "job", 1, searches=True)
    with pytest.raises(CompactHydraException, match=r"a search needs an objective.*choose a scorer"):
        keep_sweeping(lambda: math.nan, tmp_path / "job", 1, searches=True)
    assert keep_sweeping(lambda: 0.5, tmp_path / "job", 1) == 0.5

    def stopped() -> float:
        raise SystemExit(130)  # Ctrl-C; a launcher's process must not end all others

    with pytest.raises(SystemExit):
        keep_sweeping(stopped, tmp_path / "other", 1)
    assert math.isnan(keep_sweeping(stopped, tmp_path / "other", 1, stops=False))
    assert not (tmp_path / "job" / "error.txt").exists()


def test_several_processes_are_refused_unless_slurm_starts_them() -> None:
    one, four = (SimpleNamespace(devices=devices, num_nodes=1) for devices in (1, 4))
    local = SimpleNamespace(_target_="hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    slurm = SimpleNamespace(_target_="SlurmLauncher", tasks_per_node=4, nodes=1)
    check_devices(one, local)
    check_devices(four, slurm)
    with pytest.raises(ValueError, match=r"-m with trainer\.devices=4 .*is not possible.*its own sweep"):
        join_sweep(SimpleNamespace(launcher=local), four)
    two_machines = SimpleNamespace(devices=4, num_nodes=2)
    with pytest.raises(
        ValueError, match=r"tasks_per_node=4 hydra\.launcher\.nodes=1, but .*num_nodes=2: SLURM"
    ):
        check_devices(two_machines, slurm)
    config = SimpleNamespace(trainer=four, hydra=SimpleNamespace(launcher=local))
    with pytest.raises(SystemExit, match="is not possible"):
        SweepReport().on_multirun_start(config)


def begin_job(folder: Path) -> Path:
    """Do what Hydra does before it calls a job."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
    return folder


def test_a_sweep_tells_of_its_own_jobs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Other sweeps in the same folder: an old failure does not fail a new sweep, old runs are in no table."""
    monkeypatch.setattr(SweepReport, "failed", ())
    trainer = {"devices": 1, "num_nodes": 1}
    config = OmegaConf.create(
        {"trainer": trainer, "hydra": {"launcher": {}, "sweep": {"dir": str(tmp_path)}}}
    )
    (begin_job(tmp_path / "old" / "failed") / "error.txt").write_text("it was")
    for name in ("old/finished", "old/done_again", "old/failing_now"):
        write_summary(make_run(tmp_path / name))
    report = SweepReport()
    report.on_multirun_start(config)
    report.on_multirun_end(config)
    assert SweepReport.failed == () and capsys.readouterr().out == ""
    begin_job(tmp_path / "old" / "done_again")
    write_summary(make_run(tmp_path / "new"))
    (begin_job(tmp_path / "old" / "failing_now") / "error.txt").write_text("it is")
    (begin_job(tmp_path / "failed") / "error.txt").write_text("it is")
    report.on_multirun_end(config)
    assert SweepReport.failed == (str(tmp_path / "failed"), str(tmp_path / "old" / "failing_now"))
    lines = (tmp_path / "comparison.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["new", "old/done_again"]


def test_the_command_of_a_job_has_its_folder() -> None:
    """The report shows it, and without the folder it would train in the default one."""
    runtime = SimpleNamespace(
        config_sources=[SimpleNamespace(provider="main", path=str(conf_dir()))], output_dir="/sweep/seed=1"
    )
    overrides = SimpleNamespace(hydra=["hydra.mode=MULTIRUN", "hydra.run.dir=x"], task=["+subject=cat"])
    job = SimpleNamespace(config_name="run")
    words = command_words(
        SimpleNamespace(runtime=runtime, overrides=overrides, job=job, mode=RunMode.MULTIRUN)
    )
    assert words[3:] == ['hydra.run.dir="/sweep/seed=1"', "+subject=cat"]
    words = command_words(SimpleNamespace(runtime=runtime, overrides=overrides, job=job, mode=RunMode.RUN))
    assert words[3:] == ["hydra.run.dir=x", "+subject=cat"]


def test_the_command_refuses_a_sweep_over_devices(tmp_path: Path) -> None:
    done = command(tmp_path, "personalar.run", "-m", "+subject=cat", "trainer=ddp", "seed=0,1")
    assert done.returncode == 1 and "is not possible: each process" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "sweeps").exists()


def sweep(tmp_path: Path, model: Path, scorers: Path, *overrides: str):
    """Run a sweep over one grey photo."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40), (120, 90, 60)).save(tmp_path / "photos" / "0.png")
    judges = [f"scorer.{name}={scorers / name}" for name in ("clip", "dino")]
    judges.append("scorer.photo_warning=null")  # they may lead a search
    subject = ("+subject=folder", f"subject.path={tmp_path / 'photos'}", "subject.noun=dog")
    return command(
        tmp_path, "personalar.run", "-m", *subject, f"model.path={model}", *judges, *TINY,
        f"hydra.sweep.dir={tmp_path / 'sweep'}", *overrides,
    )  # fmt: skip


def test_two_jobs_with_joblib(tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install personalar[joblib]")
    done = sweep(
        tmp_path, tiny_model_dir, tiny_scorer_dir, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "seed=0,1", "decoder.cfg_scale=2", "hydra.sweep.subdir=${seed}-${decoder.cfg_scale}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/summary.json"))
    assert found == ["0-2.0", "1-2.0"]
    lines = (tmp_path / "sweep" / "comparison.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == found
    assert (tmp_path / "sweep" / "comparison.html").is_file() and "| 1-2.0 |" in done.stdout


def test_submitit_and_a_failing_job(tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install personalar[submitit]")
    done = sweep(
        tmp_path, tiny_model_dir, tiny_scorer_dir, "hydra/launcher=submitit_local",
        "hydra.launcher.timeout_min=5", "decoder.temperature=-1,1", "hydra.sweep.subdir=${hydra.job.num}",
        "objective=[dino,clip_t]",
    )  # fmt: skip
    assert done.returncode == 1 and "failed jobs (1)" in done.stderr, done.stderr[-3000:]
    assert (tmp_path / "sweep" / "0" / "error.txt").is_file()
    assert (tmp_path / "sweep" / "1" / "summary.json").is_file()
    assert "comparison.html" in done.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="pip install personalar[optuna]",
)
def test_optuna_is_told_the_objective(tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path) -> None:
    done = sweep(
        tmp_path, tiny_model_dir, tiny_scorer_dir, "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1",
        "decoder.temperature=choice(-1.0,1.0,0.5)",
        "hydra.sweep.subdir=${hydra.job.num}", "hydra.sweeper.max_failure_rate=1.0",
    )  # fmt: skip
    assert (tmp_path / "sweep" / "optimization_results.yaml").is_file(), done.stderr[-3000:]
    assert "best_value" in (tmp_path / "sweep" / "optimization_results.yaml").read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="pip install personalar[optuna]",
)
def test_a_search_ends_at_a_failed_trial_in_a_sentence(
    tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path
) -> None:
    done = sweep(
        tmp_path, tiny_model_dir, tiny_scorer_dir, "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_trials=2", f"hydra.sweeper.storage=sqlite:///{tmp_path}/x.db",
        "decoder.temperature=choice(-1.0,-2.0)", "hydra.sweeper.max_failure_rate=0",
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    assert "a trial failed: " in done.stderr
