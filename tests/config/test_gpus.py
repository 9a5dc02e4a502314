"""Jobs that run side by side compute on different GPUs; the GPUs are names here, and none is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from personalar.config import gpus
from personalar.config.gpus import take_gpu, visible_gpus
from personalar.runs.sweep import join_sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what a test takes: in life a process keeps it until it ends."""
    monkeypatch.setattr(gpus, "_places", [])


def test_gpus_are_those_that_the_process_may_use(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


class Taker:
    """A process that takes a place and keeps it until it is told to end."""

    def __init__(self, folder: Path, visible: str) -> None:
        code = (
            "import os, sys, pathlib; from personalar.config.gpus import take_gpu; "
            f"print(take_gpu(pathlib.Path({str(folder)!r}))); "
            "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
        )
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.told, self.gpu = (self.process.stdout.readline().strip() for _ in range(2))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_each_process_takes_the_gpu_that_fewest_have_and_frees_it_by_ending(tmp_path: Path) -> None:
    takers = [Taker(tmp_path, "3,GPU-5/a") for _ in range(3)]
    try:
        assert [taker.gpu for taker in takers] == ["3", "GPU-5/a", "3"]
        assert takers[1].told == "this job computes on GPU GPU-5/a (of 3, GPU-5/a)"
        assert "GPU 3 (of 3, GPU-5/a), as 1 more at this time" in takers[2].told
        assert "run at most 2 jobs at once (hydra.launcher.n_jobs)" in takers[2].told
        takers[1].end()  # killed, and its lock file stays: the place is free all the same
        takers.append(Taker(tmp_path, "3,GPU-5/a"))
        assert takers[3].gpu == "GPU-5/a" and takers[3].told == takers[1].told
    finally:
        for taker in takers:
            taker.end()


def test_a_process_keeps_its_gpu_for_every_job_it_serves(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    told = take_gpu(tmp_path)
    assert take_gpu(tmp_path) == told and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_gpu_nothing_is_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert take_gpu(tmp_path / "places") is None and not (tmp_path / "places").exists()


def job(folder: Path, seconds: float) -> tuple[int, str, float, float]:
    """Be a job of a sweep: take a GPU, work, and tell (process, GPU, begin, end)."""
    take_gpu(folder)
    began = time.time()
    time.sleep(seconds)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], began, time.time()


def test_jobs_of_different_length_in_reused_processes_do_not_meet_on_a_gpu(
    tmp_path: Path, monkeypatch
) -> None:
    """Job number modulo two would put the jobs 0 (long) and 2 on one GPU, while the other idles."""
    loky = pytest.importorskip("joblib.externals.loky", reason="pip install personalar[joblib]")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    with loky.ProcessPoolExecutor(2) as pool:  # what joblib keeps its processes in
        done = [future.result() for future in [pool.submit(job, tmp_path, s) for s in (2, 0.5, 0.5, 0.5)]]
    processes = {process for process, *_ in done}
    assert len(processes) == 2 and {gpu for _, gpu, *_ in done} == {"0", "1"}
    for one, other in combinations(done, 2):
        at_once = one[2] < other[3] and other[2] < one[3]
        assert not (at_once and one[1] == other[1])


@pytest.mark.parametrize(
    ("launcher", "accelerator", "left"),
    [
        ("joblib_launcher.JoblibLauncher", "gpu", "2"),
        ("joblib_launcher.JoblibLauncher", "auto", "2"),
        ("submitit_launcher.LocalLauncher", "gpu", "2"),
        ("joblib_launcher.JoblibLauncher", "cpu", "2,5"),
        ("submitit_launcher.SlurmLauncher", "gpu", "2,5"),  # the cluster has chosen
        ("basic_launcher.BasicLauncher", "gpu", "2,5"),  # one job at a time
    ],
)  # fmt: skip
def test_a_gpu_is_taken_where_jobs_run_side_by_side_on_this_machine(
    launcher: str, accelerator: str, left: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("WANDB_RUN_GROUP", "kept")
    hydra_config = SimpleNamespace(
        sweep=SimpleNamespace(dir=str(tmp_path)), launcher=SimpleNamespace(_target_=launcher)
    )
    join_sweep(hydra_config, SimpleNamespace(devices=1, accelerator=accelerator))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    with pytest.raises(ValueError, match=r"-m with trainer\.devices=2 is refused"):
        join_sweep(hydra_config, SimpleNamespace(devices=2, accelerator=accelerator))
