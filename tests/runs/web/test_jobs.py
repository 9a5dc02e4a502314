"""Commands that the page starts: found again by their folders, stopped, resumed; without Gradio."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from personalar.runs.web.jobs import Jobs, pairs, stage_concepts

AT_WORK = """
import sys, time, json
from pathlib import Path
from personalar.core.run_lock import locked
folder = Path(sys.argv[1])
facts = {"phase": "stage", "step": 1, "of": 4, "loss": None, "eta": None}
with locked(folder):
    try:
        (folder / "progress.json").write_text(json.dumps({**facts, "state": "running"}))
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / "progress.json").write_text(json.dumps({**facts, "state": "stopped"}))
        print("saved")
        raise SystemExit(130)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_another_server_finds_a_run_and_stops_it(tmp_path: Path) -> None:
    jobs, later = Jobs(tmp_path), Jobs(tmp_path)
    folder = jobs.folder("nano/cat")
    assert jobs.state(folder).status == ""
    jobs.start(folder, ["python", "-c", AT_WORK, str(folder)])
    assert jobs.state(folder).at_work and jobs.runs() == ["nano/cat"]
    wait_for(lambda: later.state(folder).status == "running")
    assert later.process(folder) == jobs.process(folder)
    with pytest.raises(ValueError, match=r"is at work in .*cat: stop it, or wait for it"):
        later.start(folder, ["python", "-c", "pass"])
    later.stop(folder)
    wait_for(lambda: jobs.process(folder) is None)
    assert jobs.state(folder).status == later.state(folder).status == "stopped"
    assert jobs.state(folder).progress["step"] == 1 and jobs.state(folder).log.endswith("saved\n")


def test_a_command_that_fails_differs_from_one_that_was_killed(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    failing, killed = jobs.folder("nano/failing"), jobs.folder("nano/killed")
    jobs.start(failing, ["python", "-c", "raise SystemExit('photos: none')"])
    wait_for(lambda: jobs.process(failing) is None)
    assert jobs.state(failing).status == "failed" and "photos: none" in jobs.state(failing).log
    jobs.start(killed, ["python", "-c", AT_WORK, str(killed)])
    wait_for(lambda: jobs.state(killed).status == "running")
    os.kill(jobs.process(killed) or 0, 9)
    wait_for(lambda: jobs.process(killed) is None)
    assert Jobs(tmp_path).state(killed).status == jobs.state(killed).status == "killed"


def test_a_process_that_has_the_id_of_a_lock_only_by_chance_is_left_alone(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    folder = jobs.folder("nano/cat")
    folder.mkdir(parents=True)
    for content in (json.dumps({"host": "here", "pid": os.getpid()}), '{"pid": "x"}', "[]", ""):
        (folder / ".lock").write_text(content)
        assert jobs.process(folder) is None
        jobs.stop(folder)  # would end this test


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc", "web/photos", "nano\0"])
def test_a_run_is_inside_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a run"):
        Jobs(tmp_path / "outputs").folder(name)


def test_the_command_that_goes_on_is_that_of_the_run_or_of_its_log(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    folder = jobs.folder("nano/cat")
    with pytest.raises(ValueError, match=r"no command is known .*: press Start"):
        jobs.resume(folder)
    log = jobs.log(folder)
    log.parent.mkdir(parents=True)
    log.write_text("$ python -m personalar.run subject=cat hydra.run.dir=x\nerror\n")
    assert jobs.command(folder) == [
        "python",
        "-m",
        "personalar.run",
        "subject=cat",
        f"hydra.run.dir={folder}",
    ]
    folder.mkdir(parents=True)
    command = "python -m personalar.run subject=dog hydra.run.dir=where/it/was"
    (folder / "run.json").write_text(json.dumps({"command": command}))
    expected = ["python", "-m", "personalar.run", "subject=dog", f"hydra.run.dir={folder}"]
    assert jobs.command(folder) == expected


def test_a_set_of_photos_named_run_is_no_run(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    (jobs.own / "photos").mkdir(parents=True)
    (jobs.own / "photos" / "run.json").write_text("{}")
    assert jobs.runs() == []


def test_runs_of_a_benchmark_are_found(tmp_path: Path) -> None:
    (tmp_path / "nanobench/lora/cat").mkdir(parents=True)
    (tmp_path / "nanobench/lora/cat/run.json").write_text("{}")
    assert Jobs(tmp_path).runs() == ["nanobench/lora/cat"]


def test_the_output_of_the_last_command(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    folder = jobs.pushes("nano/cat")
    assert jobs.output(folder) == ("", "")
    for number in (1, 2):
        jobs.start(folder, ["python", "-c", f"print({number})"])
        wait_for(lambda: jobs.process(folder) is None)
    assert jobs.output(folder) == ("python -c 'print(2)'", "2\n")


def test_the_concepts_of_all_stages_can_be_used(finished_run: Path) -> None:
    stages = finished_run / "stages"
    assert stage_concepts(finished_run) == {
        "the last one": finished_run,
        "embedding": stages / "embedding" / "concept",
        "transformer": stages / "transformer" / "concept",
    }


def test_the_pictures_of_the_base_and_the_last_stage_are_paired(finished_run: Path, copied) -> None:
    found = pairs(finished_run)
    assert list(found) == ["a photo of a [V] cat, seed 0", "a [V] cat on the beach, seed 0"]
    for before, after in found.values():
        assert (before.parent.name, after.parent.name) == ("base", "transformer")
    begun = copied(finished_run)
    shutil.rmtree(begun / "images" / "transformer")
    assert {after.parent.name for _, after in pairs(begun).values()} == {"embedding"}
