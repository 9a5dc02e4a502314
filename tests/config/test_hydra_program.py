"""Hydra's own features work as in any Hydra program, and a refused command writes nothing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from test_cli import ROOT, command
from test_personalize import contents
from test_sweep import TINY


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> list[str]:
    """The arguments of a run of one step a stage."""
    photos = tmp_path_factory.mktemp("photos")
    Image.new("RGB", (40, 40), (120, 90, 60)).save(photos / "0.png")
    subject = ["subject=folder", f"subject.path={photos}", "subject.noun=dog", "subject.name=rex"]
    return [*subject, f"model.path={tiny_model_dir}", "scorer=none", *TINY]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; do not write into it."""
    here = tmp_path_factory.mktemp("first")
    done = command(here, "personalar.run", *words, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return here / "run"


def learned(folder: Path) -> dict[str, list[float]]:
    rows = {
        name: row.flatten().tolist()
        for name, row in load_file(folder / "concept/learned_embeds.safetensors").items()
    }
    pictures = {path.name: path.read_bytes() for path in (folder / "images/transformer").glob("*.png")}
    assert rows and pictures
    return {**rows, **pictures}


def test_a_saved_configuration_gives_the_same_result(finished: Path, tmp_path: Path) -> None:
    saved = os.path.relpath(finished / ".hydra", tmp_path)
    again = ["hydra.run.dir=again", "-cn", "config", "--config-dir", saved, "trainer.threads=1"]
    done = command(tmp_path, "personalar.run", *again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert learned(tmp_path / "again") == learned(finished)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert not list((tmp_path / "again").glob("*.log"))
    typed = json.loads((tmp_path / "again" / "run.json").read_text())["command"]
    for word in (
        f"--config-dir {finished / '.hydra'}",
        "--config-name config",
        "hydra.run.dir=again",
        "trainer.threads=1",
    ):
        assert word in typed
    third = command(tmp_path, *shlex.split(typed)[2:])
    assert third.returncode == 0 and "already finished" in third.stdout, third.stderr


def test_a_saved_configuration_is_checked_too(finished: Path, tmp_path: Path) -> None:
    saved = ["--config-dir", str(finished / ".hydra"), "--config-name", "config"]
    for wrong, message in (
        ("sead=3", "has no 'sead'; did you mean seed?"),
        ("+sead=3", "Key 'sead' not in 'RunConfig'"),
        ("seed=-3", "seed=-3 is out of range"),
    ):
        said = command(tmp_path, "personalar.run", wrong, *saved)
        assert said.returncode == 1 and message in said.stderr and "Traceback" not in said.stderr
    assert not list(tmp_path.rglob("*.yaml"))


def test_a_run_keeps_its_configuration_and_its_command(finished: Path, words: list[str]) -> None:
    kept = {path.name for path in (finished / ".hydra").iterdir()}
    assert kept == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert OmegaConf.load(finished / ".hydra/config.yaml").subject.name == "rex"
    assert OmegaConf.load(finished / ".hydra/hydra.yaml").hydra.run.dir == "run"
    overrides = OmegaConf.load(finished / ".hydra/overrides.yaml")
    assert list(overrides) == [f"+{words[0]}", *words[1:]]
    typed = json.loads((finished / "run.json").read_text())["command"]
    assert shlex.split(typed) == ["python", "-m", "personalar.run", "hydra.run.dir=run", *overrides]


@pytest.mark.parametrize("wrong", ["seed=7", "decoder.temperature=-1", "scorer.clip=nowhere", "seed=x"])
def test_a_refused_command_changes_nothing_in_a_finished_run(
    finished: Path, words: list[str], wrong: str
) -> None:
    before = contents(finished, "**/*")
    if wrong.startswith("scorer"):
        words = [word for word in words if word != "scorer=none"]
    said = command(finished.parent, "personalar.run", *words, "hydra.run.dir=run", wrong)
    assert said.returncode == 1 and "Traceback" not in said.stderr
    after = contents(finished, "**/*")
    before.pop(".lock"), after.pop(".lock")
    assert after == before


def test_two_jobs_in_one_folder(words: list[str], tmp_path: Path) -> None:
    """The second wants another seed than the run that is there: its reason is kept elsewhere."""
    where = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=same"]
    done = command(tmp_path, "personalar.run", *words, *where, "seed=0,1", "--multirun")
    assert done.returncode == 1 and "failed jobs (1): sweep/error_1.txt" in done.stderr, done.stderr
    good = tmp_path / "sweep" / "same"
    assert (good / "summary.json").is_file() and not list(good.rglob("error*.txt"))
    assert OmegaConf.load(good / ".hydra/config.yaml").seed == 0
    assert "seed 0 -> 1" in (tmp_path / "sweep" / "error_1.txt").read_text()
    assert "page: sweep/comparison.html" in done.stdout


def test_a_run_that_was_finished_before_is_in_the_table_of_the_sweep(
    words: list[str], tmp_path: Path
) -> None:
    sweep = ["personalar.run", "-m", *words, "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed}", "seed=3"]
    first = command(tmp_path, *sweep)
    before = contents(tmp_path / "sweep/3/.hydra", "**/*")
    second = command(tmp_path, *sweep, "trainer.threads=1")
    for done in (first, second):
        assert done.returncode == 0 and "page: sweep/comparison.html" in done.stdout, done.stderr
    assert "already finished" in second.stdout and contents(tmp_path / "sweep/3/.hydra", "**/*") == before


def test_a_long_sweep_has_short_folders_and_a_table_of_them(words: list[str], tmp_path: Path) -> None:
    long = [f'subject.description="{"a brown dog " * 8}"']
    long += [f"+logger.extra_{place}=null" for place in range(12)]
    sweep = ["personalar.run", "-m", *words, *long, "hydra.sweep.dir=sweep", "seed=3"]
    done = command(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr[-3000:]
    assert command(tmp_path, *sweep).returncode == 0
    (run,) = [path.parent for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert "- seed=3" in (run / ".hydra/overrides.yaml").read_text().splitlines()


def complete(line: str) -> list[str]:
    """Return what a shell is told that may stand at the end of `line`."""
    words = [sys.executable, "-m", "personalar.run", "-sc", "query=bash"]
    told = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"COMP_LINE": line}, capture_output=True, text=True, check=True
    )
    return told.stdout.split()


def test_completion() -> None:
    assert complete("python personalar/run.py +subject=ca") == [
        "+subject=candle",
        "+subject=car",
        "+subject=cat",
    ]
    assert complete("python personalar/run.py +subject=cat trainer.th") == ["trainer.threads="]
    assert "stage=both" in complete("python personalar/run.py stage=")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of a user's own choices and of a configuration that uses them."""
    folder = tmp_path / "my conf"
    (folder / "subject").mkdir(parents=True)
    (folder / "subject" / "mine.yaml").write_text(
        "defaults: [subject_schema]\nname: mine\nnoun: dog\nseed: 8\n"
    )
    (folder / "my.yaml").write_text("defaults: [run, subject: mine, _self_]\nseed: 5\n")
    return folder


def shown(here: Path, *words: str) -> dict:
    done = command(here, "personalar.run", *words)
    assert done.returncode == 0, done.stderr
    return OmegaConf.to_container(OmegaConf.create(done.stdout), resolve=False)


def test_configurations_of_ones_own(own: Path, tmp_path: Path) -> None:
    place = ["--config-dir", str(own)]
    assert shown(tmp_path, "--cfg", "job", "subject=mine", *place)["subject"]["seed"] == 8
    assert (
        shown(tmp_path, "subject=mine", f"hydra.searchpath=['file://{own}']", "-c", "job")["subject"]["seed"]
        == 8
    )
    mine = shown(tmp_path, *place, "stage=embedding", "--config-name", "my", "--cfg", "job")
    assert (mine["seed"], mine["subject"]["name"], mine["stage"]["name"]) == (5, "mine", "embedding")
    assert shown(tmp_path, *place, "-cn", "my", "-c", "job", "subject=cat")["subject"]["name"] == "cat"
    said = command(tmp_path, "personalar.run", *place, "subject=mien")
    assert said.returncode == 1 and "did you mean mine?" in said.stderr and "dog, " in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["my conf"]


def test_cfg_resolved_and_info(tmp_path: Path) -> None:
    plain = shown(tmp_path, "--cfg", "job", "subject=cat", "--package", "decoder")
    resolved = shown(tmp_path, "--resolve", "subject=cat", "--cfg", "job", "--package", "decoder")
    assert (plain["cfg_scale"], resolved["cfg_scale"]) == ("${model.sampling.cfg_scale}", 2.0)
    assert shown(tmp_path, "subject=cat", "-c", "hydra")["hydra"]["overrides"]["task"] == ["+subject=cat"]
    for flags in (["--info", "searchpath", "subject=cat"], ["subject=cat", "--info"], ["-i", "defaults"]):
        told = command(tmp_path, "personalar.run", *flags)
        assert told.returncode == 0 and "Traceback" not in told.stderr, told.stderr
        assert "file:///" in told.stdout if "defaults" not in flags else "model/nano" in told.stdout
    assert list(tmp_path.iterdir()) == []
