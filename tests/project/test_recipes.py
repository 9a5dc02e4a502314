"""The recipes of CONTRIBUTING.md, run literally."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from personalar.concepts.concept import Concept
from personalar.runs.sweep import objective_value

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = r"^## Add ([^\n]+)\n\n```python\n(.+?)```\n```bash\n(.+?)```"
RECIPES = {title: (code, shell) for title, code, shell in re.findall(BLOCKS, TEXT, re.M | re.S)}
LOOK = ("samples.kinds=[subject]", "samples.grid_every_steps=0")
Check = Callable[[Path, str], object]


def curves(run: Path) -> str:
    return "".join(path.read_text() for path in run.rglob("metrics.csv"))


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


CHECKS: dict[str, Check] = {
    "a callback": lambda run, said: "stage embedding: 4 steps" in said,
    "a logger": lambda run, said: "mine/train/loss" in next((run / "mine").rglob("metrics.csv")).read_text(),
    "an optimizer": lambda run, said: "lr-Mine" in curves(run),
    "a scheduler": lambda run, said: "0.140625" in curves(run),  # 0.15 (1 - (1/4)^2), the rate of step 1
    "a subject": lambda run, said: "red: 1 photo, learned" in said,
    "something to learn": lambda run, said: Concept.load(run / "concept").adapters["mine"]["shift"].any(),
    "a decoder": lambda run, said: "my_decoder" in sys.modules and any((run / "images").rglob("*.png")),
    "a base model": lambda run, said: Concept.load(run / "concept").rows.shape[1] == 8,  # the toy's width
    "a scorer": lambda run, said: objective_value(summary_of(run), ["brightness"]) > 0,
}


def test_every_seam_has_a_recipe() -> None:
    assert RECIPES.keys() == CHECKS.keys()


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works(
    title: str, do_run: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    code, shell = RECIPES[title]
    assert len([line for line in (code + shell).splitlines() if line]) <= 10  # nine, and the file's name
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("toy_family").write_weights(tmp_path)
    importlib.invalidate_caches()
    words = [word.replace("=DIR", f"={tmp_path}") for word in shlex.split(shell)]
    assert words[:3] == ["python", "-m", "personalar.run"]
    do_run(tmp_path / "run", *words[4:], "stage=embedding", *LOOK, subject=words[3])
    assert CHECKS[title](tmp_path / "run", capsys.readouterr().out)
