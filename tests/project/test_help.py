"""--help of each command: purpose, an example, requirements and settings; and nothing else happens."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import typing
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING

from personalar.config.compose import COMMANDS, groups_of


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_of_the_command_and_says_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    # --help sets it, and later compositions of this process would read it.
    monkeypatch.setattr(HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)
    try:
        importlib.import_module(f"personalar.{name}").main()
    except SystemExit as stopped:
        assert not stopped.code, stopped
    said = capsys.readouterr().out
    assert "_schema" not in said and list(tmp_path.iterdir()) == []
    header, _, rest = said.partition("Config groups (group=option):")
    assert header.startswith(f"personalar.{name}: ") and f"python -m personalar.{name} " in header
    assert len(header.splitlines()[0]) < 120
    needed = header.partition("Required: ")[2]
    kinds = typing.get_type_hints(COMMANDS[name])
    for field in dataclasses.fields(COMMANDS[name]):
        if field.default == MISSING and not dataclasses.is_dataclass(kinds[field.name]):
            assert f"{field.name}=" in needed, f"{field.name} must be given, and --help does not say so"
    common = header.partition("Common settings: ")[2].partition("Required")[0]
    assert bool(common) == (name == "sample") and set(re.findall(r"\b(\w+)[.\w]*=", common)) <= set(kinds)
    groups = re.findall(r"^  ([\w/]+)= +\S", rest, re.MULTILINE)
    assert sorted(groups) == sorted(groups_of(COMMANDS[name]))
    assert name != "run" or "subject=      backpack | bear" in said
    assert len(said.splitlines()) <= 50 and "docs/configuration.md" in said  # one screen


@pytest.mark.parametrize(("name", "default"), [("compare", "comparison"), ("web", "7860")])
def test_help_shows_the_defaults(name: str, default: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"personalar.{name}").main(["--help"])
    assert f"(default: {default})" in capsys.readouterr().out


def test_groups_of_commands() -> None:
    assert groups_of(COMMANDS["doctor"]) == ["model", "trainer"]
    assert groups_of(COMMANDS["sample"]) == ["model", "decoder", "trainer"]
    assert {"model/recipe", "experiment", "subject"} < set(groups_of(COMMANDS["run"]))
