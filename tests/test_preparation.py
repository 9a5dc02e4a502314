"""What a stage needs beforehand."""

from __future__ import annotations

from typing import Any

import pytest

from personalar import preparation
from personalar.preparation import class_prompts
from personalar.prompts import training_prompt
from personalar.recipe import DataNumbers
from personalar.session import Session


def test_class_prompts_take_turns_and_animals_have_more() -> None:
    data = DataNumbers(
        replay_images=5, replay_prompts=["a {}", "a red {}"], replay_prompts_live=["a {} wearing a hat"]
    )
    assert class_prompts(data, noun="cat", live=True) == [
        "a cat", "a red cat", "a cat wearing a hat", "a cat", "a red cat",
    ]  # fmt: skip
    assert class_prompts(data, noun="car", live=False) == [
        "a car",
        "a red car",
        "a car",
        "a red car",
        "a car",
    ]
    assert class_prompts(DataNumbers(replay_images=3), noun="car", live=False) == []


@pytest.mark.parametrize(
    ("class_name", "prompt"), [(True, "a rendering of [V] cat"), (False, "a rendering of [V]")]
)
def test_the_search_for_a_start_asks_what_training_asks(
    session: Session, monkeypatch: pytest.MonkeyPatch, class_name: bool, prompt: str
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(preparation, "start_identifier", lambda *_, **given: asked.update(given))
    monkeypatch.setattr(preparation, "photo_codes", lambda *_: [])
    data = DataNumbers(templates=["a rendering of {}", "a {}"], class_name=class_name)
    session.config.model.recipe.data = data
    preparation.new_identifier(session, lambda: None)
    assert asked["prompt"] == prompt == training_prompt(data.templates[0], "cat", class_name=class_name)
