"""The doctor's findings: what is there, what lacks, and the verdict with its exit status."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest_run import compose_config
from huggingface_hub import constants
from PIL import Image

from personalar.config.commands import DoctorConfig
from personalar.core.process import package_versions
from personalar.doctor import devices, diagnose, disk, main, model_files, section


def settings(*overrides: str) -> DoctorConfig:
    return compose_config(*overrides, name="doctor")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_ready_on_a_cpu(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnose(settings(f"model.path={tiny_model_dir}"))
    text = capsys.readouterr().out
    assert text.endswith("verdict: ready\n") and "PROBLEM" not in text
    for part in (
        "versions\n  python 3.",
        f"torch {metadata.version('torch')}",
        "cpu: ",
        f"{tiny_model_dir}/base",
    ):
        assert part in text, part
    assert "32 px, square sizes, guidance 2, top-k 0, top-p 0.95, temperature 1" in text


def test_missing_files_are_described(tmp_path: Path) -> None:
    told, well = section("model", model_files(settings("model=anole_7b").model))
    assert (
        "https://huggingface.co/leloy/Anole-7b-v0.1-hf (revision 96df523" in told and "about 14.3 GB" in told
    )
    assert f"stored in {tmp_path / 'hub'}" in told and "licence to accept there" in told
    assert not well and told.endswith(
        "\n  PROBLEM: files are missing: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or set "
        "model.path=DIR"
    )


def test_files_that_do_not_belong_together(tiny_model_dir: Path, lumina_dir: Path, tmp_path: Path) -> None:
    """Found from sizes, the tokenizer and the headers of the weights."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    shutil.copyfile(lumina_dir / "tokenizer.json", folder / "base" / "tokenizer.json")
    told, well = section("model", model_files(settings(f"model.path={folder}").model))
    assert not well and "PROBLEM: the tokenizer " in told and f"transformer: {folder}/base" in told


def look_at(*overrides: str) -> tuple[str, bool]:
    config = settings(*overrides)
    return section("devices", devices(config.trainer, config.model))


def test_a_large_base_on_a_cpu_is_noted() -> None:
    text, well = look_at("model=lumina_mgpt_7b_512", "trainer=cpu")
    assert well and text.endswith("lumina_mgpt_7b_512 is for a GPU; on a CPU a run takes hours to days")
    assert "days" not in look_at("trainer=cpu")[0]


def test_photos_are_looked_at_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    diagnose(settings(f"subject.path={tmp_path}"))
    text = capsys.readouterr().out
    assert "33%" in text and f"1 photo(s) of {tmp_path} can be used\n  note: set subject.noun=WORD" in text
    diagnose(settings(f"subject.path={tmp_path}", "subject.noun=dog"))
    assert 'prompt "a [V] dog"' in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        diagnose(settings(f"subject.path={tmp_path / 'none'}"))
    assert "does not exist: give a folder with pictures of one thing" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"subject\.noun=dog has no effect without photos: set subject"):
        settings("subject.noun=dog")


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    text, well = look_at("trainer=ddp")
    assert not well and "  gpu: none" in text
    assert text.endswith("PROBLEM: trainer=ddp needs a GPU, and torch finds none: choose trainer=cpu")


def test_fewer_gpus_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Some GPU", 80 * 10**9

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    text, well = look_at("trainer=ddp")
    assert not well and text.endswith("PROBLEM: trainer.devices=2 is out of range; allowed: 1 to 1 here")
    assert "  gpu 0: Some GPU, 80 GB\n" in text
    assert look_at("trainer=gpu")[1]


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personalar.core.process.PACKAGES", ("nothing-of-that-name",))
    assert package_versions()["nothing-of-that-name"] == "not installed"


@pytest.mark.parametrize("where", [".", "outputs"])
def test_a_folder_that_cannot_be_written(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert section("disk", disk())[1] and not list((tmp_path / "outputs").iterdir())
    write = tempfile.TemporaryFile

    def refused(*, dir: Path) -> object:
        if dir == Path(where):
            raise PermissionError(errno.EACCES, "Permission denied")
        return write(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert section("disk", (refused(dir=Path(where)) for _ in "x")) == (
        "disk\n  PROBLEM: [Errno 13] Permission denied", False
    )  # fmt: skip
    text, well = section("disk", disk())
    place = (tmp_path / where).resolve()
    assert not well and f"PROBLEM: {place} cannot be written (Permission denied): change its" in text


@pytest.mark.parametrize(
    ("arguments", "status", "shown"),
    [
        (["model=nano"], None, "verdict: ready"),
        (["model=lumina_mgpt_7b_512"], 1, "verdict: not ready: see model above"),
        (["model.path=nowhere"], 1, "PROBLEM: no model folder at nowhere"),
    ],
)
def test_the_command(
    arguments: list[str], status: int | None, shown: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
    monkeypatch.chdir(tmp_path)
    if status is None:
        main()
    else:
        with pytest.raises(SystemExit) as error:
            main()
        assert error.value.code == status
    assert shown in capsys.readouterr().out
