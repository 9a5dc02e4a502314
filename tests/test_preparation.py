"""What a stage needs beforehand."""

from personalar.preparation import class_prompts
from personalar.recipe import DataNumbers


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
