"""Captioned pictures for the pretraining of nano: true to their captions, with the truth about two things."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pictures import (
    caption_words,
    identity_vector,
    sample_example,
    sample_pair,
    sample_picture,
    twins,
)

from personalar.config.compose import package_path
from personalar.generation.requests import words_note
from personalar.models.chameleon.model_files import read_layout
from personalar.nano.world.album import STYLES
from personalar.nano.world.captions import description
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.layers import layers
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.scene import ACCESSORIES, sample_instance
from personalar.nano.world.subjects import subject_instance

NANO = read_layout(package_path("package://nano") / "protocol.json")


def test_nano_knows_the_words_of_its_world_and_no_others() -> None:
    assert NANO.known_words == list(caption_words())
    rng = np.random.default_rng(0)
    captions = [sample_picture(rng).caption for _ in range(400)]
    assert words_note(NANO, [caption.replace("[W]", "[V]") for caption in captions]) is None
    told = {word for caption in captions for word in caption.split()}
    assert told - {"[V]", "[W]"} >= set(caption_words())


@pytest.mark.parametrize("seed", range(12))
def test_both_things_show_where_the_truth_says(seed):
    picture = sample_pair(np.random.default_rng(seed)).picture
    thing = layers(picture.scenes, 64).thing
    columns = [np.nonzero(thing == which)[1] for which in (0, 1)]
    assert all(len(c) > 0.03 * thing.size for c in columns)
    assert columns[0].mean() + 8 < columns[1].mean()
    assert picture.scenes[0].instance.noun != picture.scenes[1].instance.noun
    assert picture.scenes[0].context == picture.scenes[1].context


def test_captions_tell_style_things_and_accessories_in_correct_english():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(300):
        example = sample_picture(rng)
        caption, picture = example.caption, example.picture
        assert (picture.style or " ") in caption
        assert "  " not in caption and caption == caption.strip()
        for match in re.finditer(r"\b(an?) (\w)", caption):
            assert (match[1] == "an") == (match[2].lower() in "aeiou"), caption
        for each, named, identifier in zip(picture.scenes, example.named, ("[V]", "[W]"), strict=False):
            assert each.instance.noun in caption
            assert (identifier in caption) == (named is not None)
            assert each.worn is None or f"{each.worn[1]} {each.worn[0]}" in caption
            seen.add(each.worn and each.worn[0])
        seen.add((picture.style, len(picture.scenes)))
    assert seen >= {*ACCESSORIES, *((style, count) for style in (None, *STYLES) for count in (1, 2))}


def test_names_of_two_things_mean_those_things():
    rng = np.random.default_rng(2)
    for example in (sample_pair(rng) for _ in range(40)):
        for each, named in zip(example.picture.scenes, example.named, strict=True):
            assert named is None or named == each.instance
        if description(example.picture.scenes[1].instance) in example.caption:
            assert example.named[1] is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_captions_are_true_and_in_correct_english(seed):
    scene, caption, named = sample_example(np.random.default_rng(seed))
    noun = scene.instance.noun
    assert noun in caption
    assert "  " not in caption and caption == caption.strip()
    for match in re.finditer(r"\b(an?) (\w)", caption):
        assert (match[1] == "an") == (match[2].lower() in "aeiou"), caption
    assert ("[V]" in caption) == (named is not None)
    if scene.worn:
        assert f"{scene.worn[1]} {scene.worn[0]}" in caption
    if "background" in caption or " in the " in caption:
        assert scene.context is not None and CONTEXTS[scene.context][0] in caption
    if description(scene.instance) in caption:
        assert scene.instance.skin.colours[0][0] in caption


def test_a_quarter_of_the_animals_wear_something():
    rng = np.random.default_rng(0)
    scenes = [sample_example(rng)[0] for _ in range(800)]
    animals = [s for s in scenes if s.instance.noun in HEADS]
    assert np.mean([s.worn is not None for s in animals]) >= 0.25


def test_identity_vector_tells_individuals_apart():
    rng = np.random.default_rng(1)
    first, second = sample_instance("dog", rng), sample_instance("dog", rng)
    assert identity_vector(first).shape == identity_vector(second).shape
    assert np.abs(identity_vector(first) - identity_vector(second)).max() > 0.5


def test_twins_share_half_of_an_individual():
    instance = subject_instance("cat", 0)
    reshaped, recoloured = twins(instance, 2, np.random.default_rng(0))
    assert reshaped.skin == instance.skin and reshaped.proportions != instance.proportions
    assert recoloured.proportions == instance.proportions and recoloured.skin != instance.skin
