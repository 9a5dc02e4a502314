"""The rendered world: deterministic, varied, and called by its right name."""

from dataclasses import replace

import numpy as np
import pytest

from personalar.nano.world.album import STYLES, Picture, draw
from personalar.nano.world.captions import article, wearing
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS, accessory
from personalar.nano.world.objects.solids import Solid, cast, view_matrix
from personalar.nano.world.prompt_set import bench_prompts
from personalar.nano.world.scene import (
    ACCESSORIES,
    CLASSES,
    sample_instance,
    sample_scene,
)
from personalar.nano.world.subjects import rendered_subject, scene_for_prompt, subject_instance


def pixels(scene, size=48) -> np.ndarray:
    return np.asarray(draw(Picture(scenes=(scene,)), size)).astype(float)


@pytest.mark.parametrize("noun", CLASSES)
def test_same_scene_same_picture_and_other_individual_other_picture(noun):
    rng = np.random.default_rng(3)
    scene = sample_scene(sample_instance(noun, rng), rng, context="snow")
    assert np.array_equal(pixels(scene), pixels(scene))
    other = replace(scene, instance=sample_instance(noun, rng))
    assert np.abs(pixels(scene) - pixels(other)).mean() > 1


@pytest.mark.parametrize("noun", CLASSES)
def test_things_fill_the_frame(noun):
    rng = np.random.default_rng(5)
    for _ in range(3):
        scene = sample_scene(sample_instance(noun, rng), rng, context=None)
        image = pixels(scene, 64)
        backdrop = image[:, :2].mean(1, keepdims=True)  # the studio is one soft colour per row
        covered = (np.abs(image - backdrop).sum(-1) > 60).mean()
        assert 0.10 < covered < 0.85


@pytest.mark.parametrize("kind", [*ACCESSORIES, "bow tie"])
@pytest.mark.parametrize("noun", HEADS)
def test_accessories_are_large_enough_to_see(noun, kind):
    rng = np.random.default_rng(7)
    scene = sample_scene(sample_instance(noun, rng), rng, context="snow")
    plain, worn = pixels(scene, 96), pixels(replace(scene, worn=(kind, "red")), 96)
    changed = np.abs(plain - worn).sum(-1) > 40
    assert changed.mean() > 0.008


def test_a_sphere_is_hit_where_a_sphere_is():
    ball = Solid(kind="sphere", centre=(0, 0, 0), size=(1, 1, 1))
    hits = cast([ball], view=view_matrix(30, 10), scale=20, centre=(32, 32), size=64)
    y, x = np.mgrid[0:64, 0:64] + 0.5
    inside = (x - 32) ** 2 + (y - 32) ** 2 < 20**2
    assert np.array_equal(hits.solid >= 0, inside)
    assert np.allclose(np.linalg.norm(hits.position[inside], axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize("kind", ["sphere", "box", "frustum"])
def test_the_nearer_solid_hides_the_farther(kind):
    far = Solid(kind="box", centre=(0, 0, -3), size=(2, 2, 0.5))
    near = Solid(kind=kind, centre=(0, 0, 1), size=(0.5, 0.5, 0.5))
    hits = cast([near, far], view=view_matrix(0, 0), scale=10, centre=(32, 32), size=64)
    assert hits.solid[32, 32] == 0
    assert hits.solid[32, 15] == 1
    assert np.allclose(np.linalg.norm(hits.normal[hits.solid >= 0], axis=-1), 1, atol=1e-4)


def test_phrases():
    assert article("orange cat") == "an orange cat"
    assert wearing(("hat", "red")) == " wearing a red hat"
    assert wearing(("glasses", "pink")) == " wearing pink glasses"
    assert wearing(None) == ""


@pytest.mark.parametrize("noun", CLASSES)
def test_bench_prompts_ask_for_what_they_say(noun):
    prompts = bench_prompts(noun)
    assert len({p.context for p in prompts if p.category == "recontext"}) == len(CONTEXTS) >= 12
    assert all(p.text.count("{}") == 1 for p in prompts)
    assert all(p.colour in p.text and p.accessory in p.text for p in prompts if p.category == "accessory")
    assert any(p.category == "accessory" for p in prompts) == (noun in HEADS)


def test_a_subject_is_one_individual():
    subject = rendered_subject("cat", 0, size=32)
    assert len(subject.train) == 5
    assert len(subject.holdout) >= 20 and len(subject.others) >= 20
    again = rendered_subject("cat", 0, size=32)
    assert [i.tobytes() for i in subject.train] == [i.tobytes() for i in again.train]


@pytest.mark.parametrize("noun", ["cat", "vase"])
def test_views_for_the_bounds_do_what_the_prompts_ask(noun):
    """The best that a personalization can reach also wears the hat and changes colour."""
    rng, instance = np.random.default_rng(0), subject_instance(noun, 1)
    assert {spec.style for spec in bench_prompts(noun)} == {None, *STYLES}
    for spec in bench_prompts(noun):
        scene = scene_for_prompt(instance, spec, rng)
        assert scene.context == spec.context
        assert scene.worn == ((spec.accessory, spec.colour) if spec.accessory else None)
        recolours = spec.category == "property" and spec.colour
        assert (scene.instance == instance) == (not recolours)
        assert scene.instance.proportions == instance.proportions
        assert not recolours or scene.instance.skin.colours[0][0] == spec.colour
        assert scene.shiny == ("shiny" in spec.text)


def test_unknown_noun_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"noun='unicorn' is unknown; allowed: cat, dog"):
        sample_instance("unicorn", np.random.default_rng(0))


def test_unknown_accessory_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"accessory='sock' is unknown; allowed: hat, scarf"):
        accessory("sock", (1.0, 0.0, 0.5))
