"""The README's map: a reader who wants to change something finds the right folder at the first try."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WANTED = {
    "loss": ("training", "def sequence_loss"),
    "learning-rate schedule": ("training", "def recipe_schedule"),
    "checkpoints": ("training", "def save_checkpoint"),
    "Ctrl-C": ("training", "SIGINT"),
    "memory": ("training", "what fits"),
    "photo formats": ("data", "pillow_heif"),
    "families?|family": ("models", "class Backend(Protocol)"),
    "can be learned": ("concepts", "class Identifier(nn.Module)"),
    "numbers of the stages": ("config", "class StageNumbers"),
    "guidance, top-k": ("generation", "class Sampling"),
    "names of pictures": ("core", "def sample_filename"),
    "columns": ("reports", "MEASURES"),
    "W&B panels": ("runs", "define_metric"),
    "preprocessing": ("scoring", "processor"),
    "weights, its scorers": ("nano", "world"),
}
"""Words of the map -> the folder in whose line they must be, and a text in the code of that folder."""


def lines() -> dict[str, str]:
    """Return the description of each folder of the package in the README's map."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("## Where things are")[1].split("```")[1]
    found = re.findall(r"^  (\w+)/ +(.+)$", block, re.MULTILINE)
    assert len(found) == 11
    return dict(found)


@pytest.mark.parametrize("words", WANTED)
def test_the_map_leads_there(words: str) -> None:
    folder, code = WANTED[words]
    named = [name for name, told in lines().items() if re.search(words, told)]
    assert named == [folder], f"{words!r} is said of {named}"
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "personalar" / folder).rglob("*.py")]
    assert any(code in text for text in texts), f"nothing in {folder}/ has {code!r}"
