"""The base of a concept that a command line names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import personalar
import personalar.sample
from personalar.concepts.concept_source import base_settings, with_concept

COMMIT = "a" * 40


@pytest.fixture
def learned(tmp_path: Path) -> Callable[..., Path]:
    def write(**record: object) -> Path:
        folder = tmp_path / "run"
        (folder / "concept").mkdir(parents=True, exist_ok=True)
        (folder / "concept" / "concept.json").write_text(json.dumps(record))
        return folder

    return write


def test_a_run_folder_and_its_concept_name_their_base(learned: Callable[..., Path], tmp_path: Path) -> None:
    weights = tmp_path / "my weights"
    weights.mkdir()
    model = {"path": str(weights), "vq_path": str(tmp_path / "gone"), "hub": {"revision": COMMIT}}
    run = learned(base={"name": "lumina_mgpt_7b_768"}, config={"model": model})
    for folder in (run, run / "concept"):
        assert base_settings(str(folder), []) == ["model=lumina_mgpt_7b_768", f'model.path="{weights}"']


def test_the_commit_of_a_hub_is_the_one_it_was_learned_on(learned: Callable[..., Path]) -> None:
    model = {"path": None, "hub": {"revision": COMMIT}, "vq_hub": {"revision": "main"}}
    run = learned(base={"name": "anole_7b"}, config={"model": model})
    assert base_settings(str(run), []) == ["model=anole_7b", f"model.hub.revision={COMMIT}"]
    model |= {"tokenizer_hub": {"revision": "b" * 40}}
    run = learned(base={"name": "lumina_mgpt_7b_512"}, config={"model": model})
    assert f"model.tokenizer_hub.revision={'b' * 40}" in base_settings(str(run), [])


@pytest.mark.parametrize("name", ["../evil", "no such base", None, 3, ["nano"]])
def test_a_base_that_is_none_of_ours_is_not_chosen(learned: Callable[..., Path], name: object) -> None:
    assert base_settings(str(learned(base={"name": name}, config={"model": {}})), []) == []


def test_what_is_chosen_by_hand_stays(learned: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    model = {"path": str(tmp_path), "hub": {"revision": COMMIT}}
    run = learned(base={"name": "anole_7b"}, config={"model": model})
    given = f"concept={run}"
    assert with_concept([given, "model=nano"]) == [given, "model=nano"]
    assert with_concept([given, "model.path=there"]) == [given, "model.path=there", "model=anole_7b"]
    assert with_concept([given]) == [given, "model=anole_7b", f'model.path="{tmp_path}"']
    assert with_concept([f'concept="{run}"'])[1] == "model=anole_7b"
    for nothing in (["seeds=[1]"], [f"concept={tmp_path / 'none'}"], [f"concept={run},{run}"]):
        assert with_concept(nothing) == nothing
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    home = learned(base={"name": "nano"}, config={"model": {"path": f"~/{tmp_path.name}"}})
    assert f'model.path="{tmp_path}"' in base_settings(str(home), [])


def test_a_damaged_record_is_left_to_who_opens_it(learned: Callable[..., Path]) -> None:
    run = learned()
    for text in ("", "{", "[]", '{"base": 3}', '{"base": {"name": "nano"}, "config": {"model": 3}}'):
        (run / "concept" / "concept.json").write_text(text)
        assert base_settings(str(run), []) in ([], ["model=nano"])


def test_the_reports_command_draws_as_it_stands(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's base is none that a command takes by itself: the record names its folder."""
    words = [f"concept={finished_run}", 'prompts=["a photo of a [V] cat"]', f"out={tmp_path / 'samples'}"]
    monkeypatch.setattr(sys, "argv", ["sample", *words])
    monkeypatch.chdir(tmp_path)
    personalar.sample.main()
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1
    assert len(personalar.load(finished_run).images(["a [V] cat"], [1])) == 1
