"""Several machines: torchrun and SLURM as in the guide, with two "machines" of one process each; submitit."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
from conftest_run import QUICK, compose_config
from processes import free_port
from test_cli import command as run_command
from test_distributed import assert_same_learning

from personalar.config.run_config import RunConfig
from personalar.core.process import global_rank, local_rank
from personalar.core.run_folder import RunFolder
from personalar.training.strategy import make_environment

GUIDE = Path(__file__).parents[2] / "docs" / "multi_gpu.md"
ENDS_WITHIN_S = 120


def torchrun(rank: int, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts the run on machine `rank` under torchrun, and its environment."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    where = ["--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [*launcher, *where, "-m", "personalar.run"], {}


def srun(rank: int, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the same for SLURM: `srun` starts the plain command and passes the rest in the environment."""
    slurm = {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2, "PROCID": rank,
             "LOCALID": 0, "NODEID": rank, "NODELIST": "127.0.0.1"}  # fmt: skip
    said = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    return [sys.executable, "-m", "personalar.run"], {**said, "MASTER_PORT": str(port)}


def photos_of(run_dir: Path) -> list[str]:
    """Return the settings of a subject with the photos of a run, which need not be drawn again."""
    return ["+subject=folder", f"subject.path={run_dir / 'references'}", "subject.noun=cat"]


@pytest.mark.parametrize(
    ("launcher", "strategy"), [(torchrun, "ddp"), pytest.param(srun, "zero2", marks=pytest.mark.slow)]
)
def test_two_machines_learn_what_one_process_learns(
    launcher, strategy: str, tiny_model_dir: Path, finished_run: Path, tmp_path: Path
) -> None:
    words = [*photos_of(finished_run), *QUICK, f"model.path={tiny_model_dir}", "scorer=none"]
    words += [f"trainer={strategy}"]
    words += [
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.num_nodes=2",
    ]
    words += ["samples.prompts=['a {}']", "samples.kinds=[subject]", "samples.grid_every_steps=0"]
    words += [f"hydra.run.dir={tmp_path / 'run'}"]
    port, machines = free_port(), []
    outer = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    for rank in range(2):
        command, said = launcher(rank, port)
        machines.append(
            subprocess.Popen(
                [*command, *words], env={**outer, **said}, cwd=tmp_path, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    try:
        outputs = [machine.communicate(timeout=ENDS_WITHIN_S)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    assert RunFolder(tmp_path / "run").record["stages"]["transformer"]["processes"] == 2
    assert_same_learning(finished_run, tmp_path / "run")


def commands_of_the_guide() -> list[str]:
    section = GUIDE.read_text().split("## Several machines")[1].split("\n## ")[0]
    joined = section.replace("\\\n", " ")
    return [line for line in joined.splitlines() if "personalar.run" in line and not line.startswith("#")]


def composed(command: str) -> RunConfig:
    """Return the configuration of the words after `personalar.run` in a command."""
    words = shlex.split(command)
    return compose_config(*words[words.index("personalar.run") + 1 :])


def test_a_slurm_job_is_stopped_and_started_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own requeuing would start the next stage from the checkpoint of the previous one."""
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert make_environment() == []
    for name, value in (("SLURM_NTASKS", "2"), ("SLURM_NTASKS_PER_NODE", "2"), ("SLURM_JOB_NAME", "train")):
        monkeypatch.setenv(name, value)
    (environment,) = make_environment()
    assert environment.auto_requeue is False
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun within a SLURM job
    assert make_environment() == []


def test_the_guides_commands_start_as_many_processes_as_they_configure() -> None:
    by_torchrun, by_srun = commands_of_the_guide()
    counts = {
        name: int(re.search(rf"--{name} (\d+)", by_torchrun)[1]) for name in ("nnodes", "nproc-per-node")
    }
    batch = {
        name: int(re.search(rf"--{name}=(\d+)", GUIDE.read_text())[1])
        for name in ("nodes", "ntasks-per-node", "gpus-per-node")
    }
    for command, machines, processes in (
        (by_torchrun, counts["nnodes"], counts["nproc-per-node"]),
        (by_srun, batch["nodes"], batch["ntasks-per-node"]),
    ):
        trainer = composed(command).trainer
        assert (trainer.num_nodes, trainer.devices) == (machines, processes)
    assert batch["ntasks-per-node"] == batch["gpus-per-node"]  # one process a GPU, as Lightning wants it


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({"RANK": "5", "LOCAL_RANK": "1"}, (5, 1)),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, (5, 1)),
        ({}, (0, 0)),
    ],
)
def test_ranks_are_read_before_lightning_is_there(
    said: dict[str, str], ranks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert (global_rank(), local_rank()) == ranks


def test_submitit_starts_a_sharded_run(
    tiny_model_dir: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of docs/cluster.md, with a simulated SLURM and CPUs instead of GPUs."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install personalar[submitit]")
    monkeypatch.setenv("PATH", f"{slurm.install(tmp_path / 'bin')}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    start = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "trainer.devices=2"]
    words = [*photos_of(finished_run), *QUICK, f"model.path={tiny_model_dir}", "scorer=none"]
    words += [
        "trainer=zero2",
        "trainer.accelerator=cpu",
        "samples.prompts=['a {}']",
        "samples.kinds=[subject]",
        "samples.grid_every_steps=0",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    done = run_command(tmp_path, "personalar.run", "-m", *start, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = [path.parent for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert RunFolder(run).record["stages"]["transformer"]["processes"] == 2
    assert_same_learning(finished_run, run)


def test_the_cluster_page_starts_one_process_per_gpu() -> None:
    text = (GUIDE.parent / "cluster.md").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "tasks_per_node" in line and "personalar.run" in line]
    trainer = composed(line.replace(" -m +", " +")).trainer
    asked = dict(re.findall(r"hydra\.launcher\.(\w+)=(\d+)", line))
    assert (asked["tasks_per_node"], asked["nodes"]) == (str(trainer.devices), str(trainer.num_nodes))
    assert asked["gpus_per_node"] == asked["tasks_per_node"] and trainer.strategy == "zero3"
