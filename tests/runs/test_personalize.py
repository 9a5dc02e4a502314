"""Whole runs in this process: their files, two commands equal one, and a killed run resumes."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import sys
import weakref
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from conftest_run import compose_config
from PIL import Image

import personalar
import personalar.core.console
import personalar.training.datamodule
import personalar.training.module
from personalar.concepts.concept import Concept
from personalar.core.png import read_png_metadata
from personalar.core.run_folder import RunFolder
from personalar.data.subject import load_subject
from personalar.models.chameleon.model_files import ChameleonFiles
from personalar.runs import pictures
from personalar.scoring.score_file import read_scores
from personalar.training.context import RunContext


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern)) if p.is_file()}


def same_scores(one: Path, two: Path) -> None:
    """Assert that scores are equal, but for the last digit of a value.

    A picture may be scored in another batch than before, and then some processors round differently.
    """
    first, second = (read_scores(folder / "scores.jsonl") for folder in (one, two))
    assert len(first) == len(second) > 0
    for ours, theirs in zip(first, second, strict=True):
        for name in ("value", "nearest"):
            assert ours.pop(name, 0.0) == pytest.approx(theirs.pop(name, 0.0), abs=2e-6, rel=0)
        assert ours == theirs


def same_result(one: Path, two: Path) -> None:
    """Assert that concepts and pictures are equal byte for byte, and scores but for the last digit."""
    for pattern in ("concept/*", "stages/*/concept/*", "images/**/*.png"):
        first, second = contents(one, pattern), contents(two, pattern)
        assert first
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []
    same_scores(one, two)


def test_a_run_leaves_what_the_contract_says(finished_run: Path) -> None:
    for name in ("concept/concept.json", "summary.json", "report.html", "scores.jsonl", "run.json"):
        assert (finished_run / name).is_file(), name
    summary = json.loads((finished_run / "summary.json").read_text())
    assert list(summary["stages"]) == ["base", "embedding", "transformer"]
    assert summary["stages"]["embedding"]["steps"] == 4
    assert summary["total_seconds"] > 0 and summary["peak_memory_bytes"] > 1e6
    pictures = sorted((finished_run / "images" / "transformer").glob("*.png"))
    facts = read_png_metadata(pictures[-1])
    assert "[V] cat" in facts["prompt"] and facts["seed"] == "0" and facts["concept"]
    assert {path.name for path in (finished_run / "grids").glob("*.png")} >= {"base.png", "overview.png"}
    assert list((finished_run / "logs").rglob("metrics.csv"))
    assert len(list((finished_run / "references").glob("*.png"))) == 5


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("trainer=gpu", "trainer=gpu needs a GPU"),
        ("method=qlora", "method.base_bits=4 needs bitsandbytes"),
        ("optimizer=adamw8bit", "optimizer._target_=bitsandbytes.* needs bitsandbytes"),
    ],
)
def test_what_the_machine_lacks_is_told_before_a_download(
    setting: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("personalar.runs.personalize.offline_model", lambda model: None)
    monkeypatch.setattr("personalar.runs.personalize.obtain_model", pytest.fail)
    with pytest.raises((ValueError, ModuleNotFoundError), match=told):
        personalar.personalize("subject=cat", setting, folder=tmp_path)


def test_the_progress_of_a_run_without_a_terminal(do_run, tmp_path: Path, capsys, monkeypatch) -> None:
    """Every long phase says where it is, and progress.json in the end that the run is finished."""
    monkeypatch.setattr(personalar.core.console, "LINE_EVERY", 0.0)
    do_run(tmp_path / "run", "stage=embedding")
    said = capsys.readouterr().out
    assert "time on this CPU" not in said  # of a large base only
    for phase in ("pictures base", "scores base", "codes of the photos", "start of \\[V\\]"):
        assert re.search(rf"^{phase}: \d+ of \d+ .*, eta ", said, re.MULTILINE), phase
    assert re.search(
        r"^stage embedding: 3 of 4 steps, loss \d+\.\d{3}, \d+ s, eta 0:00:0\d$", said, re.MULTILINE
    )
    facts = json.loads((tmp_path / "run/progress.json").read_text())
    assert (facts["phase"], facts["state"]) == ("scores embedding", "finished")


def test_ctrl_c_before_the_first_step_ends_a_run_as_everywhere_else(do_run, tmp_path, monkeypatch) -> None:
    """Lightning would exit with 1, as a run that failed does."""

    noted: list[float] = []

    def interrupted(*_: object) -> None:
        noted.append(RunFolder(tmp_path / "run").record["total_seconds"])
        raise KeyboardInterrupt

    monkeypatch.setattr(personalar.training.datamodule, "stage_inputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do_run(tmp_path / "run", "stage=embedding")
    assert json.loads((tmp_path / "run/progress.json").read_text())["state"] == "stopped"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert RunFolder(tmp_path / "run").record["total_seconds"] > noted[0]  # the stage's time counts


def test_two_commands_equal_one(do_run, finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "parts"
    assert do_run(run, "stage=embedding") and not do_run(run, "stage=embedding")
    assert not (run / "stages" / "transformer").exists()
    assert do_run(run, "stage=transformer")
    same_result(finished_run, run)
    assert not do_run(run, "stage=both") and not do_run(run, "stage=embedding")


def run_whole_and_killed(do_run, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run into "whole", and into "killed" with a kill in the fourth of four steps, and again."""
    do_run(tmp_path / "whole", *words)
    loss = Mock(wraps=personalar.training.module.sequence_loss)
    loss.side_effect = [DEFAULT, DEFAULT, DEFAULT, RuntimeError("killed"), DEFAULT, DEFAULT]
    monkeypatch.setattr(personalar.training.module, "sequence_loss", loss)
    with pytest.raises(RuntimeError, match="killed"):
        do_run(tmp_path / "killed", *words)
    do_run(tmp_path / "killed", *words)
    assert loss.call_count == 6  # the third step of four came after the last checkpoint


def test_directions_go_on_after_a_kill(do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identifier = [f"model.recipe.identifier.{word}" for word in ("optimizer=direction", "rows=2", "pull=0.1")]
    words = [*identifier, "stage=embedding", "scorer=none", "samples.grid_every_steps=0"]
    run_whole_and_killed(do_run, tmp_path, words, monkeypatch)
    whole, killed = (Concept.load(tmp_path / name / "concept").rows for name in ("whole", "killed"))
    start = Concept.load(tmp_path / "whole" / "cache" / "start").rows
    assert torch.equal(whole, killed) and not torch.allclose(whole, start)
    assert torch.allclose(whole.norm(dim=1), start.norm(dim=1), atol=0, rtol=1e-6)


def test_context_vectors_go_on_after_a_kill(do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["method=dcoar", "prior.images=2", "scorer=none", "samples.grid_every_steps=0"]
    run_whole_and_killed(do_run, tmp_path, words, monkeypatch)
    assert Concept.load(tmp_path / "whole" / "concept").adapters["context"]["text"].any()
    for pattern in ("stages/context/concept/*", "images/**/*.png"):
        assert contents(tmp_path / "whole", pattern) == contents(tmp_path / "killed", pattern) != {}


def test_a_part_of_a_finished_run_is_finished(do_run, finished_run: Path, tmp_path: Path, capsys) -> None:
    """Each of these commands used to score all pictures again, and to add the seconds to total_seconds."""
    before = contents(finished_run, "**/*")
    for words in (["stage=both"], ["stage=embedding"], ["stage=transformer"], ["model.sampling.batch=3"]):
        assert not do_run(finished_run, *words)
        assert "already finished; overwrite=true starts again" in capsys.readouterr().out
    assert contents(finished_run, "**/*") == before
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    assert do_run(copy, "stage=embedding", "samples.seeds=[0,1]")  # of all stages: they are shown together
    assert not do_run(copy, "stage=both", "samples.seeds=[0,1]")


@pytest.mark.parametrize(
    "part", ["personalar.reports.run_page.write_report", "personalar.runs.record.result_lines"]
)
def test_a_run_that_dies_at_its_report_is_not_finished(
    part: str, do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(part, Mock(side_effect=KeyboardInterrupt))
        do_run(run_dir, "stage=embedding")
    assert "finished" not in RunFolder(run_dir).record
    assert do_run(run_dir, "stage=embedding") and (run_dir / "report.html").is_file()
    (run_dir / "report.html").unlink()
    assert do_run(run_dir, "stage=embedding") and (run_dir / "report.html").is_file()


def test_the_time_until_a_crash_counts(session: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = Mock(side_effect=RuntimeError("out of memory"))
    monkeypatch.setattr(personalar.runs.personalize, "learn", crash)
    with pytest.raises(RuntimeError, match="out of memory"):
        personalar.runs.personalize.personalize(session, [], command="test")
    assert session.folder.record["total_seconds"] > 0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "+logger.mine.save_dir=x",
            r"logger\.mine={'save_dir': 'x'} names no class: set logger\.mine\._target_=",
        ),
        ("+logger.mine=csv", "logger.mine='csv' names no class"),
        ("logger.csv=3", "logger.csv=3 names no class"),
        ("~scheduler", "scheduler={} names no class"),
        (
            "optimizer._target_=torch.optim.Adamm",
            r"optimizer: cannot create torch\.optim\.Adamm .*PYTHONPATH",
        ),
        (
            "+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping",
            r"cannot create lightning.* \(missing a required argument: 'monitor'\)",
        ),
        ("+callbacks.mine._target_=nowhere.Mine", r"callbacks\.mine: cannot create nowhere\.Mine"),
        ("+method.stages.embedding.adapters.a._target_=x.Y", r"embedding\.adapters\.a: cannot create x\.Y"),
    ],
)
def test_a_wrong_class_is_told_before_a_download(
    word: str, message: str, do_run, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(personalar.runs.personalize, "offline_model", lambda model: None)
    monkeypatch.setattr(personalar.runs.personalize, "obtain_model", Mock(side_effect=AssertionError))
    with pytest.raises(ValueError, match=message):
        do_run(tmp_path / "run", word)


def test_scores_of_other_scorers_are_not_kept(do_run, finished_run: Path, copied) -> None:
    """They were averaged with the new ones, about other prompts."""
    copy, words = copied(finished_run), ["stage=both", 'samples.prompts=["a {} on the moon"]']
    before = {line["template"] for line in read_scores(copy / "scores.jsonl")}
    assert do_run(copy, *words)  # the same scorers: both sets of prompts are in the table
    templates = {line["template"] for line in read_scores(copy / "scores.jsonl")}
    assert templates == before | {"a {} on the moon"}
    assert do_run(copy, *words, "scorer.clip_text=prompt")
    left = {line["template"] for line in read_scores(copy / "scores.jsonl") if line["kind"] == "subject"}
    assert left == {"a {} on the moon"}


def test_a_command_without_scorers_keeps_the_meaning_of_the_scores(
    do_run, finished_run: Path, copied
) -> None:
    copy = copied(finished_run)
    none = ("scorer=none", "scorer.clip=null", "scorer.dino=null")
    before = json.loads((copy / "run.json").read_text())
    assert do_run(copy, "stage=both", *none, "samples.seeds=[0,1]")
    after = json.loads((copy / "run.json").read_text())
    for name in ("scorers", "measures", "bounds"):
        assert before[name] and after[name] == before[name], name
    stages = [json.loads((run / "summary.json").read_text())["stages"] for run in (finished_run, copy)]
    assert stages[0]["transformer"]["fidelity"] == stages[1]["transformer"]["fidelity"] is not None


def test_a_finished_run_started_again_keeps_its_result(
    do_run, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pictures of a finished run, interrupted while those of stage 1 are sampled."""
    copy, whole = shutil.copytree(finished_run, tmp_path / "copy"), pictures.sample_and_score

    def interrupted(session: RunContext, stage: str, base_samples: list) -> list:
        if stage == "embedding":
            raise KeyboardInterrupt
        return whole(session, stage, base_samples)

    monkeypatch.setattr(pictures, "sample_and_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do_run(copy, "stage=both", "samples.seeds=[0,1]")
    assert Concept.load(copy / "concept").stage == "transformer"


@pytest.mark.parametrize("run", ["[]", "[transformer]"])
def test_a_selection_of_no_stage_is_told(do_run, tmp_path: Path, run: str) -> None:
    with pytest.raises(ValueError, match=r"stage\.run=.*; allowed: embedding$"):
        do_run(tmp_path, "method=embedding_only", f"stage.run={run}")


def test_unknown_words_are_told_and_kept(do_run, tmp_path: Path, capsys, monkeypatch) -> None:
    from personalar.generation import requests

    note = "this base was not trained on: moon"
    monkeypatch.setattr(requests, "words_note", lambda layout, prompts: note)
    do_run(tmp_path / "run", "stage=embedding", 'samples.prompts=["a {} on the moon"]')
    assert capsys.readouterr().out.count(f"note: {note}\n") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["warnings"] == [note]
    assert note in (tmp_path / "run" / "report.html").read_text()


def test_other_settings_in_the_same_folder_are_refused(do_run, finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    (copy / "my notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"(?s)seed 0 -> 1.*hydra.run.dir=.*overwrite=true"):
        do_run(copy, "seed=1")
    assert do_run(copy, "seed=1", "overwrite=true", "stage=embedding")
    assert json.loads((copy / "run.json").read_text())["settings"]["seed"] == 1
    assert (copy / "my notes.txt").is_file() and not (copy / "stages" / "transformer").exists()


def test_one_network_at_a_time_is_in_memory(do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's network is freed before the next phase loads the base, not at some later collection."""
    load, alive, found = ChameleonFiles.load, weakref.WeakSet(), []

    def watched(*args, **kwargs):
        found.append(len(alive))
        backend = load(*args, **kwargs)
        alive.add(backend.transformer)
        return backend

    monkeypatch.setattr(ChameleonFiles, "load", watched)
    gc.collect()
    gc.disable()
    try:
        do_run(tmp_path / "run")
    finally:
        gc.enable()
    assert len(found) >= 5 and set(found) == {0} and not alive


def test_photos_that_changed_are_refused_and_those_that_moved_are_the_same(
    do_run, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos and bases are identified by their contents, whatever the path.

    Stage 2 would learn new photos for which stage 1 has no tokens, and pictures would have other scorers.
    """
    for name in ("photos", "base"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 40), (120, 90, 60)).save(tmp_path / "photos" / "0.png")
    model = shutil.copytree(tiny_model_dir, tmp_path / "base" / "model")
    words = ["subject.noun=dog", "subject.name=rex", "scorer=none", "samples.grid_every_steps=0"]

    def train(photos: str, stage: str) -> bool:
        where = [f"subject.path={photos}", f"model.path={model}"]
        return do_run(tmp_path / "run", *where, *words, f"stage={stage}", subject="+subject=folder")

    assert train(str(tmp_path / "photos"), "embedding")
    monkeypatch.chdir(tmp_path)
    assert not train("photos", "embedding")  # finished: the same photos by another path
    Image.new("RGB", (64, 64), (200, 9, 10)).save(tmp_path / "photos" / "1.png")
    with pytest.raises(ValueError, match=r"(?s)run with other settings \(other photos\).*overwrite=true"):
        train("photos", "both")
    (tmp_path / "photos" / "1.png").unlink()
    model = model.rename(tmp_path / "elsewhere")
    (tmp_path / "photos").rename(tmp_path / "album")
    assert train("album", "both")  # goes on with stage 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]["stages"][-1] == "transformer"


def test_a_subject_of_several_rows_at_half_strength(do_run, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The pictures of the run are those that `personalar.sample` draws from its concept."""
    rows = ["model.recipe.identifier.rows=3", "model.recipe.identifier.further=kmeans"]
    strength, word = "samples.strength=0.5", ["stage=embedding", "scorer=none", "samples.grid_every_steps=0"]
    do_run(tmp_path / "run", *rows, *word, strength)
    assert list(Concept.load(tmp_path / "run" / "concept").tokens)[:4] == ["[V]", "[V:2]", "[V:3]", "[S1]"]
    cat = personalar.load(tmp_path / "run", f"model.path={tiny_model_dir}", "strength=0.5")
    made = sorted((tmp_path / "run" / "images" / "embedding").glob("subject_*.png"))
    for path in made:
        facts = read_png_metadata(path)
        (picture,) = cat.images([facts["prompt"]], [int(facts["seed"])])
        assert facts["strength"] == "0.5" and Image.open(path).tobytes() == picture.tobytes()
    assert made


def test_the_pictures_of_a_finished_run_are_proxies_of_the_next(
    do_run, finished_run: Path, tmp_path: Path, tiny_model_dir: Path, capsys
) -> None:
    """The two commands of docs/methods.md; proxies that changed are refused like photos."""
    made, run_dir = tmp_path / "made", tmp_path / "run"
    where = [f"out={made}", f"model.path={tiny_model_dir}"]
    personalar.sample_files(finished_run, ["a photo of [V] cat"], range(6), *where)
    personalar.sample_files(finished_run, ["a photo of [V] cat"], [0], "grid.x.seed=[0,1]", *where)
    words = ["method=lora", "stage=embedding", f"subject.proxies={made}", "scorer=none"]
    assert do_run(run_dir, *words)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"proxies: \d read from .*refused .*grid_seed_\w+\.png - skipped a grid of several pictures", said
    )
    count = len(load_subject(compose_config("+subject=cat", *words[:3]).subject).proxies)
    assert 1 < count <= 6 and f"5 photos and {count} proxies, learned on nano" in said
    assert f", each of {count} proxies" in said and f"codes of the proxies: {count} proxies in" in said
    assert len(list((run_dir / "references").glob("*.png"))) == 5
    next(made.glob("cat_*.png")).unlink()
    with pytest.raises(ValueError, match=r"run with other settings \(other photos or proxies\)"):
        do_run(run_dir, *words)
