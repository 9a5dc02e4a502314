"""--help: what each command does, an example of its own, what it needs, what it takes; and nothing runs."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import MISSING
from test_cli import mistake

from personalar.bench import __main__ as bench
from personalar.bench.__main__ import MEASUREMENTS
from personalar.config.compose import COMMANDS, groups_of

__all__ = ["mistake"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_of_the_command_and_says_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    try:
        importlib.import_module(f"personalar.{name}").main()
    except SystemExit as stopped:
        assert not stopped.code, stopped
    said = capsys.readouterr().out
    assert "_schema" not in said and list(tmp_path.iterdir()) == []
    header, _, rest = said.partition("Choices (group=option):")
    assert header.startswith(f"personalar.{name}: ") and f"python -m personalar.{name} " in header
    assert len(header.splitlines()[0]) < 120
    needed = header.partition("Required: ")[2]
    kinds = typing.get_type_hints(COMMANDS[name])
    for field in dataclasses.fields(COMMANDS[name]):
        if field.default == MISSING and not dataclasses.is_dataclass(kinds[field.name]):
            assert f"{field.name}=" in needed, f"{field.name} must be given, and --help does not say so"
    groups = re.findall(r"^  ([\w/]+)= +\S", rest, re.MULTILINE)
    assert sorted(groups) == sorted(groups_of(COMMANDS[name]))
    assert name != "run" or ("subject=      backpack | bear" in said and "identifier_lr: " in said)


def test_groups_of_commands() -> None:
    assert groups_of(COMMANDS["doctor"]) == ["model", "trainer"]
    assert groups_of(COMMANDS["sample"]) == ["model", "decoder", "trainer"]
    assert {"model/recipe", "experiment", "subject"} < set(groups_of(COMMANDS["run"]))


def test_a_choice_of_another_command(mistake: Callable[..., str]) -> None:
    said = "personalar.doctor: subject= belongs to personalar.run; personalar.doctor takes model=, trainer="
    assert mistake("doctor", "+subject=cat") == said


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in MEASUREMENTS)])
def test_help_of_the_measurements_measures_nothing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    monkeypatch.setattr(importlib, "import_module", None)  # a measurement loads torch
    bench.main()
    said = capsys.readouterr().out
    for name in MEASUREMENTS if arguments[0] == "--help" else arguments[:1]:
        assert f"python -m personalar.bench {name} " in said


@pytest.mark.parametrize("name", ["train"])
def test_help_of_a_measurement_names_its_settings(name: str) -> None:
    own = importlib.import_module(f"personalar.bench.{name}").OWN
    for key, value in own.items():
        shown = value if value and "," not in value else ""
        assert f"    {key}={shown}" in bench.description(name), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'' is no measurement; allowed: decode"),
        (["decod", "--help"], "'decod' is no measurement; allowed: decode, memory, train"),
        (["decode", "--cfg", "job"], "--cfg is no setting; allowed: key=value, --help"),
        (["decode", "subject=cat"], "subject= belongs to personalar.run; personalar.sample takes model="),
        (["train", "subject=cta"], "subject='cta' is not known; did you mean cat?"),
        (["train", "steps=x"], "steps=x rounds=3 must be numbers, as steps=20 rounds=3"),
    ],
)
def test_measurements_say_what_is_allowed(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit, match=re.escape(f"personalar.bench: {message}")):
        bench.main()


def test_a_measurement_that_ends_early_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(arguments: list[str]) -> None:
        raise OSError(errno.ENOSPC, "", "train.json")

    monkeypatch.setattr(sys, "argv", ["bench", "train"])
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=full))
    said = "train.json could not be written .*: nothing is kept, and the same command measures afresh once"
    with pytest.raises(SystemExit, match=f"personalar.bench: {said}"):
        bench.main()
