"""Reuse of stage 1: it equals the one that would be trained; any difference is an error that lists it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

from personalar.runs.benchmark import BenchRun, first_stage, method_overrides, share
from personalar.runs.reuse import check_started_alone

CONTEXT = "personalar.concepts.adapters.context_vectors.ContextVectors"
LORA = "method=lora"
REPLAY = "prior=replay"


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every picture's pixels and of every learned tensor in a run folder."""
    found = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    pictures = (*folder.glob("images/*/*.png"), *folder.glob("references/**/*.png"))
    found |= {path: Image.open(path).tobytes() for path in pictures}
    return {str(path.relative_to(folder)): hashlib.sha256(data).hexdigest() for path, data in found.items()}


def test_taken_over_equals_learned(do_run: Callable, finished_run: Path, tmp_path: Path) -> None:
    do_run(tmp_path / "anew", LORA, REPLAY)  # stage 1 has no class images, so any prior will do
    do_run(tmp_path / "reused", LORA, REPLAY, f"reuse={finished_run}")
    anew, reused = contents(tmp_path / "anew"), contents(tmp_path / "reused")
    learned = {name for name in anew if not name.startswith("cache/start")}
    assert {"references/04.png", "references/redrawn/04.png"} < learned
    assert {name: reused.get(name) for name in learned} == {name: anew[name] for name in learned}
    record = json.loads((tmp_path / "reused" / "run.json").read_text())
    assert record["stages"]["embedding"]["reused"] == str(finished_run.resolve())
    assert record["stages"]["embedding"]["steps"] == 4
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("anew", "reused")]
    scores = [{k: v["dino"] for k, v in summary["stages"].items()} for summary in summaries]
    assert scores[0] == scores[1]
    assert not do_run(tmp_path / "reused", LORA, REPLAY, f"reuse={finished_run}")  # finished: nothing to do


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("seed=5",), "seed 0 -> 5"),
        (("model.recipe.stages.embedding.lr=.1",), "model.recipe.stages.lr"),
        (("model.recipe.data.class_name=false",), "class_name True -> False"),
        (("method=joint",), "the method has no first stage"),
        # [I] would be among the tokens of stage 1.
        ((f"+method.stages.transformer.adapters.a._target_={CONTEXT}",), "method.adapters"),
    ],
)
def test_another_stage_is_not_taken(do_run, finished_run: Path, tmp_path: Path, overrides, told: str) -> None:
    with pytest.raises(ValueError, match="stage 1 of this run would be different") as error:
        do_run(tmp_path, f"reuse={finished_run}", *overrides)
    assert told in str(error.value)
    assert not (tmp_path / "stages").exists() and not (tmp_path / "images").exists()


def test_other_photos_and_another_base_are_refused(do_run, finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    record = copy / "stages" / "embedding" / "concept" / "concept.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "subject": {**facts["subject"], "fingerprint": "0"}}))
    with pytest.raises(ValueError, match="other photos"):
        do_run(tmp_path / "a", f"reuse={copy}")
    record.write_text(json.dumps({**facts, "base": {**facts["base"], "fingerprint": "0"}}))
    with pytest.raises(ValueError, match="other weights of base 'nano'"):
        do_run(tmp_path / "b", f"reuse={copy}")
    rows = copy / "stages" / "embedding" / "concept" / "learned_embeds.safetensors"
    rows.write_bytes(rows.read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated"):
        do_run(tmp_path / "c", f"reuse={copy}")


def test_nothing_to_take_over(do_run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"reuse=.* contains no finished stage 1 .*stage=embedding"):
        do_run(tmp_path / "run", f"reuse={tmp_path / 'nowhere'}")


def test_a_stage_without_its_record_is_not_taken_over(do_run, finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    (copy / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"contains no finished stage 1 \(run.json, "):
        do_run(tmp_path / "run", f"reuse={copy}")


def test_processes_started_outside_cannot_take_over(monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    check_started_alone(compose_config("+subject=cat", "reuse=x"))
    with pytest.raises(ValueError, match=r"reuse=DIR cannot be used with torchrun"):
        check_started_alone(compose_config("+subject=cat", "reuse=x", "trainer=ddp", "trainer.devices=2"))


def test_a_benchmark_learns_the_word_once(tmp_path: Path) -> None:
    names = ("two_stage", "lora", "embedding_only", "without_class_name", "one_stage")
    starts = {name: first_stage(("+subject=cat", *method_overrides(name))) for name in (*names, "qlora")}
    assert starts["two_stage"] == starts["lora"] == starts["embedding_only"] == starts["qlora"]
    assert starts["without_class_name"] not in (None, starts["two_stage"]) and starts["one_stage"] is None
    runs = {
        name: BenchRun(
            method=name,
            subject="cat",
            folder=tmp_path / name,
            log=tmp_path / f"{name}.log",
            overrides=(),
            first_stage=start,
        )
        for name, start in starts.items()
    }
    done = [runs["without_class_name"], runs["two_stage"]]
    assert share(done, runs["lora"]) == (f'reuse="{tmp_path / "two_stage"}"',)
    assert share(done, runs["one_stage"]) == () == share([], runs["lora"])
    runs["lora"].folder.mkdir()
    (runs["lora"].folder / "run.json").write_text("{}")
    assert share(done, runs["lora"]) == ()  # it has begun, and knows what it needs


def test_a_command_with_a_mistake_overwrites_nothing(do_run, finished_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    before = contents(copy)
    for word, says in {
        f"reuse={copy}": "is the folder that overwrite=true replaces",
        "reuse=nowhere": "contains no finished stage 1",
        "objective=[fidelty]": "fidelty",
        "stage=transformer": "starts from the result of stage=embedding",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            do_run(copy, word, "overwrite=true")
        assert contents(copy) == before
    assert do_run(copy, "overwrite=true", f"reuse={finished_run}", "stage=transformer", "scorer=none")
    assert json.loads((copy / "run.json").read_text())["stages"]["embedding"]["reused"] == str(finished_run)
