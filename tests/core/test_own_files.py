"""Files of users are never deleted, in whatever folder a run is started; file names cannot leave it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_cli import command
from test_exchange import adapter, concept_on
from test_personalize import contents, same_result

from personalar.core.files import temporary, write_atomic
from personalar.core.own_files import FOLDERS, OWN, PROGRESS_FILE, RESULTS
from personalar.core.run_folder import RunFolder
from personalar.models.chameleon.model_files import open_folder
from personalar.reports.comparison_page import compare_folders
from personalar.reports.run_page import read_samples

OURS = {"format_version": 1, "settings": {"seed": 0}, "photos": "p"}
MINE = (
    ".notes.tmp", ".a.12.tmp", "notes.txt", "images/.notes.tmp", "images/mine.jpg", "images/base/mine.png",
    "images/embedding/subject_me.png", "concept/notes.md", "concept/pictures/mine.jpg", "logs/mine.log",
    "logs/embedding/mine/metrics.csv", "stages/embedding/concept/mine.txt", "cache/mine.safetensors",
    "stages/embedding/checkpoints/mine.ckpt", "stages/transformer/best/mine.txt", "references/mine.jpg",
    "grids/mine.png", "deep/er/.x.tmp", "deep/er/.x.png.personalar-1-140000000000000.tmp",
)  # fmt: skip
"""Files that no run writes."""
PARTIAL = (
    ".run.json.personalar-12-140000000000000.tmp",
    "images/base/.subject_a.png.personalar-12-140000000000000.tmp",
)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def run_folder(path: Path, record: dict = OURS) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(record))
    return RunFolder(path)


def test_temporary_files_name_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a).name), replace(a, b)))
    write_atomic(tmp_path / "a.json", b"x")
    assert re.fullmatch(rf"\.a\.json\.personalar-{os.getpid()}-\d+\.tmp", seen[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert len(temporary(tmp_path / ("é" * 120)).name.encode()) < 256


def overwrite(folder: RunFolder) -> None:
    """Do what a run with overwrite=true does once all checks have passed."""
    folder.claim({}, photos="p", base="", overwrite=True)
    assert folder.replaced and not folder.has_concept("embedding")
    folder.clear()


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_what_a_killed_run_was_writing_goes(tmp_path: Path, overwrite: bool) -> None:
    write(tmp_path, *MINE, *PARTIAL)
    run_folder(tmp_path).claim(OURS["settings"], photos="p", base="", overwrite=overwrite)
    assert set(contents(tmp_path, "**/*")) == {*MINE, "run.json"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mine", [*FOLDERS, *RESULTS, PROGRESS_FILE, "run.json"])
def test_a_folder_that_is_no_run_is_refused_and_stays(tmp_path: Path, mine: str, overwrite: bool) -> None:
    write(tmp_path, f"{mine}/mine.jpg" if mine in FOLDERS else mine, ".notes.tmp")
    if mine == "run.json":
        (tmp_path / mine).write_text('{"format_version": 1, "speed": 9}')
    before = contents(tmp_path, "**/*")
    with pytest.raises(
        ValueError, match=rf"contains {mine} but no settings of a run in run\.json.*hydra\.run\.dir=DIR"
    ) as refused:
        RunFolder(tmp_path).claim({}, photos="p", base="", overwrite=overwrite)
    assert "overwrite" not in str(refused.value)
    assert contents(tmp_path, "**/*") == before


@pytest.mark.parametrize(
    "record", [{}, {"format_version": 2, "settings": {}, "photos": ""}, {"format_version": 1, "photos": ""}]
)
def test_a_run_json_of_another_program_gives_no_right_to_delete(tmp_path: Path, record: dict) -> None:
    write(tmp_path, "images/mine.jpg")
    with pytest.raises(ValueError, match=r"contains run\.json, images but no settings of a run in run\.json"):
        run_folder(tmp_path, record).claim({}, photos="", base="", overwrite=True)
    assert (tmp_path / "images" / "mine.jpg").is_file() and (tmp_path / "run.json").is_file()


def test_what_a_benchmark_brings_along_is_no_stranger(tmp_path: Path) -> None:
    """Also if it was killed while it copied."""
    brought = ("images/base/a.png", "references/redrawn/00.png", "cache/photo_codes.safetensors")
    write(tmp_path, *brought, "cache/.class_codes.safetensors.personalar-1-140000000000000.tmp")
    RunFolder(tmp_path).claim({}, photos="p", base="", overwrite=True)
    assert set(contents(tmp_path, "**/*")) == set(brought)


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(
    do_run, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished_run, tmp_path / "run")
    overwrite(RunFolder(run_dir))
    assert set(contents(run_dir, "**/*")) == {"run.json"}  # every file of a run is known by its name
    assert [path.name for path in run_dir.iterdir()] == ["run.json"]
    run_dir = shutil.copytree(finished_run, tmp_path / "mine")
    write(run_dir, *MINE)
    assert do_run(run_dir, "overwrite=true")
    for name in MINE:
        (run_dir / name).unlink()  # all are there still
    (run_dir / "concept" / "README.md").write_bytes((finished_run / "concept" / "README.md").read_bytes())
    same_result(finished_run, run_dir)


def test_an_overwrite_that_was_stopped_can_be_repeated(tmp_path: Path) -> None:
    """A user's pictures are beside the run's, and the run was killed after it cleared its folder."""
    write(tmp_path, "images/mine.jpg", "stages/embedding/concept/concept.json")
    overwrite(run_folder(tmp_path))
    assert not (tmp_path / "stages").exists()
    RunFolder(tmp_path).claim({"seed": 2}, photos="r", base="", overwrite=True)
    RunFolder(tmp_path).claim({"seed": 3}, photos="s", base="", overwrite=False)
    assert (tmp_path / "images" / "mine.jpg").is_file()


def test_folders_of_other_libraries_go_whole(tmp_path: Path) -> None:
    theirs = (
        "logs/wandb/offline-run-20260101_101010-ab12/files/deep/config.yaml",
        "logs/wandb/debug-internal.log",
        "stages/embedding/checkpoints/step_000002.ckpt/checkpoint/mp_rank_00.pt",
        "stages/embedding/best/step_000002/concept.json",
    )
    write(tmp_path, *theirs, "logs/wandb/mine.txt")
    (tmp_path / "logs" / "wandb" / "latest-run").symlink_to(tmp_path)  # not followed
    overwrite(run_folder(tmp_path))
    assert set(contents(tmp_path, "**/*")) == {"logs/wandb/mine.txt", "run.json"}


def test_what_a_stage_leaves_behind_goes_by_name(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    ours = "stages/embedding/checkpoints/step_000002.ckpt"
    write(tmp_path, ours, "stages/embedding/checkpoints/mine.ckpt")
    folder.drop_checkpoints("embedding")
    assert set(contents(tmp_path, "stages/**/*")) == {"stages/embedding/checkpoints/mine.ckpt"}
    assert OWN.fullmatch(ours) and not OWN.fullmatch("stages/embedding/checkpoints/mine.ckpt")


@pytest.mark.parametrize(
    ("setting", "sweeps"), [("subject.name=../../../x", []), ("model.name=../../x", ["-m"])]
)
def test_no_name_leads_out_of_outputs(tmp_path: Path, setting: str, sweeps: list[str]) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    said = command(here, "personalar.run", *sweeps, "+subject=cat", setting)
    told = said.stdout + said.stderr
    assert said.returncode == 1 and "Traceback" not in told
    assert f"{setting.partition('=')[0]}='" in told and "allowed: " in told
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and list((tmp_path / "a").iterdir()) == [here]
    assert {path.name for path in here.iterdir()} <= {"sweeps"}


def test_a_sweep_over_folders_stays_in_its_own(tmp_path: Path) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    paths = "subject.path=../../../../x,../../../../y"
    said = command(here, "personalar.run", "-m", "+subject=folder", paths, "subject.noun=dog")
    assert said.returncode == 1 and "failed jobs (2)" in said.stderr
    assert list((tmp_path / "a").iterdir()) == [here] and [path.name for path in here.iterdir()] == ["sweeps"]
    assert len(list((here / "sweeps" / "nano").rglob("error.txt"))) == 2


def test_a_concept_replaces_no_files_of_others(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A folder with a user's weights.safetensors, which used to be deleted though the concept has none."""
    files, out = open_folder(tiny_model_dir), tmp_path / "out"
    out.mkdir()
    (out / "weights.safetensors").write_bytes(b"mine")
    concept_on(files, 32).save(out)
    assert (out / "weights.safetensors").read_bytes() == b"mine"
    own = tmp_path / "own"
    concept_on(files, 32, lora=adapter()).save(own)
    concept_on(files, 32).save(own)
    assert not (own / "lora" / "adapter_config.json").exists()  # its own it takes away


def test_pictures_of_ones_own_are_not_taken_for_a_runs(finished_run: Path, tmp_path: Path) -> None:
    """Both commands used to expect a prompt in every PNG file."""
    run_dir = shutil.copytree(finished_run, tmp_path / "run")
    Image.new("RGB", (8, 8)).save(run_dir / "images" / "transformer" / "mine.png")
    compare_folders([run_dir], tmp_path / "comparison")
    samples, _ = read_samples(run_dir, RunFolder(run_dir).record)
    assert samples and "mine.png" not in {sample["path"].name for sample in samples}
