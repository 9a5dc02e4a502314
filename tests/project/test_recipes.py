"""CONTRIBUTING.md's recipes, followed literally."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from personalar.concepts.concept import Concept

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = r"^## Add ([^\n]+)\n\n```python\n(.+?)```\n```bash\n(.+?)```"
RECIPES = {title: (code, shell) for title, code, shell in re.findall(BLOCKS, TEXT, re.M | re.S)}
LOOK = ("samples.kinds=[subject]", "samples.grid_every_steps=0")
Check = Callable[[Path, str], object]


def curves(run: Path) -> str:
    return "".join(path.read_text() for path in run.rglob("metrics.csv"))


CHECKS: dict[str, Check] = {
    "a callback": lambda run, said: "stage embedding: 4 steps" in said,
    "a logger": lambda run, said: "mine/train/loss" in next((run / "mine").rglob("metrics.csv")).read_text(),
    "an optimizer": lambda run, said: "lr-Mine" in curves(run),
    "a scheduler": lambda run, said: "lr-AdamW" in curves(run),
    "a subject": lambda run, said: "red: 1 photo, learned" in said,
    "something to learn": lambda run, said: Concept.load(run / "concept").adapters["mine"]["shift"].any(),
    "a decoder": lambda run, said: "my_decoder.Mine" in (run / "run.json").read_text(),
    "a scorer": lambda run, said: "brightness" in (run / "summary.json").read_text(),
}


def test_every_seam_has_a_recipe() -> None:
    assert RECIPES.keys() == CHECKS.keys() and "## Add a base model" in TEXT


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works(
    title: str, do_run: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    code, shell = RECIPES[title]
    assert len([line for line in (code + shell).splitlines() if line]) <= 9  # eight, and the file's name
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    words = shlex.split(shell)
    assert words[:3] == ["python", "-m", "personalar.run"]
    do_run(tmp_path / "run", *words[4:], "stage=embedding", *LOOK, subject=words[3])
    assert CHECKS[title](tmp_path / "run", capsys.readouterr().out)
