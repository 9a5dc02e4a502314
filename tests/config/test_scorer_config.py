"""Judges that do not know photographs are said where the subject is real photos, and decide nothing there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest_run import compose_config
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from PIL import Image

import personalar.run
from personalar.config.compose import composed
from personalar.config.fingerprint import learning_settings, request_of
from personalar.config.run_config import RunConfig
from personalar.config.scorer_config import judged
from personalar.run import job
from personalar.runs.sweep import check_objective

FOLDER = ["+subject=folder", "subject.path=photos", "subject.noun=dog"]
BASE_NOTE = "the nano base was trained on a rendered world"
SCORER_NOTE = "the nano scorers were trained on a rendered world"
OWN = ["scorer.clip=my/clip", "scorer.dino=my/dino", "scorer.photo_warning=null"]
LARGE = "model=lumina_mgpt_7b_512"


def photo_config(*overrides: str) -> RunConfig:
    return compose_config(*FOLDER, *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], [BASE_NOTE, SCORER_NOTE]),
        ([LARGE], [SCORER_NOTE]),
        (["scorer=dreambench"], [BASE_NOTE]),
        ([LARGE, "scorer=dreambench"], []),
        ([LARGE, *OWN], []),
        ([LARGE, "scorer=none"], []),
    ],
)
def test_whoever_does_not_know_photographs_is_named(overrides: list[str], said: list[str]) -> None:
    found = photo_config(*overrides).photo_warnings
    assert len(found) == len(said) and all(map(str.startswith, found, said))
    assert compose_config("+subject=cat", *overrides).photo_warnings == []


def test_photos_are_judged_with_a_note_and_the_default_command_runs(
    do_run: Callable[..., bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        Image.new("RGB", (50, 50), (200, 40 * index, 90)).save(tmp_path / f"photo {index}.png")
    words = (f"subject.path={tmp_path}", "subject.noun=dog", "stage=embedding")
    assert do_run(tmp_path / "run", *words, subject="+subject=folder")
    said = " ".join(capsys.readouterr().out.split())
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    for note in (SCORER_NOTE, BASE_NOTE):
        assert f"note: {note}" in said and any(note in text for text in run["warnings"])
        assert note in (tmp_path / "run" / "report.html").read_text()
    assert run["rendered"] is False and run["live"] is True
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["floor"] is None


def test_a_search_is_not_left_to_them() -> None:
    with pytest.raises(
        ValueError, match=r"mean nothing; a search by objective=\[dino\*clip_t\] needs others"
    ):
        check_objective(photo_config())
    with pytest.raises(ValueError, match=r"objective=\[seconds \* clip_t\] .* a sweep without hydra/sweeper"):
        check_objective(photo_config("objective=[seconds * clip_t,seconds]"))
    check_objective(photo_config("objective=[seconds]"))
    check_objective(photo_config("scorer=dreambench"))
    check_objective(compose_config("+subject=cat"))


def test_a_searching_sweepers_job_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that tries all that is listed comes as far as the photos, which are not there."""
    found = {}
    for sweeper in ("OptunaSweeper", "BasicSweeper"):
        run_dir = tmp_path / sweeper
        hydra_config = SimpleNamespace(
            runtime=SimpleNamespace(output_dir=str(run_dir), cwd=str(Path.cwd())), mode=RunMode.MULTIRUN,
            sweep=SimpleNamespace(dir=str(tmp_path)), sweeper=SimpleNamespace(_target_=f"x.{sweeper}"),
            launcher=SimpleNamespace(_target_="x.BasicLauncher"), overrides=SimpleNamespace(task=[]),
        )  # fmt: skip
        monkeypatch.setattr(personalar.run, "HydraConfig", SimpleNamespace(get=lambda it=hydra_config: it))
        with pytest.raises(CompactHydraException) if sweeper == "OptunaSweeper" else nullcontext():
            job(composed("run", FOLDER))
        found[sweeper] = (run_dir / "error.txt").read_text()
    assert "a search by objective=[dino*clip_t] needs others" in found["OptunaSweeper"]
    assert "needs others" not in found["BasicSweeper"]


def test_what_no_judge_says_is_a_measure() -> None:
    """What others than CLIP and DINO measure is not decided by them."""
    names = ["steps*seconds", "dino", "fidelity * seconds", "sharpness", "sharpness*context_accuracy"]
    assert judged(names) == ["dino", "fidelity * seconds", "sharpness*context_accuracy"]


@pytest.mark.parametrize("more", ["scorer.photo_warning=null", "selection.likeness_weight=0.3"])
def test_a_note_and_a_curve_change_no_run(more: str) -> None:
    """The run in the folder goes on, and a finished run stays finished."""
    noted, silent = photo_config(LARGE), photo_config(LARGE, more)
    assert request_of(noted) == request_of(silent) and learning_settings(noted) == learning_settings(silent)
    assert not {"float16_problem", "nearest_problem"} & learning_settings(noted)["model"].keys()
    assert "photo_warning" not in request_of(noted)["scorer"]
