"""Commands that the page starts: found again by their folders, stopped, resumed; without Gradio."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from personalar.config.compose import composed, read_config
from personalar.runs.web.jobs import Jobs, pairs, run_command, sample_command

AT_WORK = """
import sys, time, json
from pathlib import Path
from personalar.core.run_lock import locked
folder = Path(sys.argv[1])
facts = {"phase": "stage", "step": 1, "of": 4, "loss": None, "eta": None}
with locked(folder):
    (folder / "progress.json").write_text(json.dumps({**facts, "state": "running"}))
    try:
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
    wait_for(lambda: Jobs(tmp_path).process(killed) is None)
    assert Jobs(tmp_path).state(killed).status == "killed"


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
    log.write_text("$ python -m personalar.run subject=cat hydra.run.dir=x\nerror\n$ rm -r .\n")
    assert jobs.command(folder) == ["python", "-m", "personalar.run", "subject=cat", "hydra.run.dir=x"]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"command": "python -m personalar.run subject=dog"}')
    expected = ["python", "-m", "personalar.run", "subject=dog", f"hydra.run.dir={folder}"]
    assert jobs.command(folder) == expected


def test_the_commands_mean_what_was_asked_for(tmp_path: Path) -> None:
    more = """seed=3 'samples.prompts=["a {} in, the [sea]"]'"""
    words = run_command(["subject=cat"], tmp_path / "a b", model="nano", method="lora", quick=True, more=more)
    assert words[:3] == ["python", "-m", "personalar.run"] and words[-1].startswith("hydra.run.dir=")
    config = read_config(composed("run", words[3:]))
    assert (config.seed, config.method.name, config.samples.prompts) == (3, "lora", ["a {} in, the [sea]"])
    prompts = ['a "photo" of [V] cat, {red}', "l'été: 50% \\ $x"]
    words = sample_command(
        tmp_path, tmp_path / "out", prompts="\n".join(prompts), seeds="0, 7", guidance="2.5"
    )
    config = read_config(composed("sample", words[3:]))
    assert (config.prompts, config.seeds, config.model.sampling.cfg_scale) == (prompts, [0, 7], 2.5)
    words = sample_command(tmp_path, tmp_path / "out", prompts="a cat", seeds="0 7", guidance="1, 2.5")
    config = read_config(composed("sample", words[3:]))
    assert (config.grid.x.guidance, config.grid.y.seed, config.prompts) == ([1.0, 2.5], [0, 7], ["a cat"])
    with pytest.raises(ValueError, match="drawn as a grid: write a single prompt"):
        sample_command(tmp_path, tmp_path / "out", prompts="a cat\na dog", seeds="0", guidance="1 2")
    for asked in (("", "0", ""), ("a cat", "", ""), ("a cat", "one", ""), ("a cat\n" * 21, "0 " * 20, "")):
        values = dict(zip(("prompts", "seeds", "guidance"), asked, strict=True))
        with pytest.raises(ValueError, match=r"at least one prompt, and seeds as|pictures; allowed: 400"):
            sample_command(tmp_path, tmp_path / "out", **values)
    for wrong in ("-m", "--cfg job", "fast"):
        with pytest.raises(ValueError, match="is not a setting: write key=value"):
            run_command([], tmp_path, model="nano", method="paper", quick=False, more=wrong)


def test_the_pictures_of_the_base_and_the_last_stage_are_paired(finished_run: Path) -> None:
    found = pairs(finished_run)
    assert list(found) == ["a photo of a [V] cat, seed 0", "a [V] cat on the beach, seed 0"]
    for before, after in found.values():
        assert (before.parent.name, after.parent.name) == ("base", "transformer")
