"""A concept in Python draws what the command draws, and answers mistakes in the same words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import personalar
import personalar.sample
from personalar.concepts.concept import Concept
from personalar.core.png import read_png_metadata
from personalar.generation.pipeline import Pipeline, sample_settings

ROOT = Path(__file__).parents[2]
PROMPTS = ["a photo of a [V] cat", "a [V] cat in the snow"]


@pytest.fixture
def base(tiny_model_dir: Path) -> list[str]:
    return [f"model.path={tiny_model_dir}", "trainer.threads=1"]


@pytest.fixture
def cat(finished_run: Path, base: list[str]) -> Pipeline:
    return personalar.load(finished_run, *base)


@pytest.mark.parametrize(
    "settings", [[], ["decoder=jacobi", "decoder.window=4", "decoder.top_k=5", "decoder.max_batch=4"]]
)
def test_pictures_are_those_of_the_command(
    settings: list[str], finished_run: Path, base: list[str], tmp_path: Path, monkeypatch
) -> None:
    words = [f"concept={finished_run}", f"prompts={PROMPTS}", "seeds=[3,4]", f"out={tmp_path / 'samples'}"]
    monkeypatch.setattr(sys, "argv", ["sample", *words, *base, *settings])
    monkeypatch.chdir(tmp_path)
    personalar.sample.main()
    asked = [(prompt, seed) for prompt in PROMPTS for seed in (3, 4)]
    pictures = personalar.load(str(finished_run), *base, *settings).images(*zip(*asked, strict=True))
    assert len({picture.tobytes() for picture in pictures}) == 4
    for (prompt, seed), picture in zip(asked, pictures, strict=True):
        (file,) = (
            path
            for path in (tmp_path / "samples").glob("*.png")
            if (facts := read_png_metadata(path))["prompt"] == prompt and facts["seed"] == str(seed)
        )
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(picture))


def test_what_would_be_read_otherwise_is_refused(
    cat: Pipeline, finished_run: Path, base: list[str], tmp_path: Path
) -> None:
    concept = Concept.load(finished_run / "concept")
    layout = {"layout": {"prompt_template": "Draw: {prompt}"}}
    replace(concept, config=concept.config | {"model": concept.config["model"] | layout}).save(tmp_path)
    with pytest.raises(ValueError, match=r"was learned with model\.layout\.prompt_template='Draw: "):
        personalar.load(tmp_path, *base)
    with pytest.raises(ValueError, match="could be any of the concepts"):
        Pipeline(cat.generator, ["[a]", "[b]"]).images(["an [a] cat"], [0], negative_prompt="a [V] cat")


def test_a_grid_is_written_beside_its_pictures(finished_run: Path, base: list[str], tmp_path: Path) -> None:
    words = ("grid.x.guidance=[1,2]", "grid.y.seed=[3,4]", f"out={tmp_path}")
    paths = personalar.sample_files(finished_run, PROMPTS[:1], [0], *base, *words)
    assert [read_png_metadata(path)["seed"] for path in paths] == ["3", "3", "4", "4"]
    (grid,) = tmp_path.glob("grid_seed_guidance_*.png")
    assert set(tmp_path.iterdir()) == {grid, *paths}


def test_a_grid_of_strengths_has_the_pictures_of_each(
    finished_run: Path, base: list[str], tmp_path: Path
) -> None:
    concept = finished_run / "stages" / "embedding" / "concept"
    words = ("grid.x.strength=[1,0.5]", "grid.y.seed=[3,4]")
    paths = personalar.sample_files(concept, PROMPTS[:1], [0], *base, *words, f"out={tmp_path / 'out'}")
    assert [read_png_metadata(path).get("strength") for path in paths] == [None, "0.5", None, "0.5"]
    for place, strength in enumerate((1, 0.5)):
        pictures = personalar.load(concept, *base, f"strength={strength}").images(PROMPTS[:1] * 2, [3, 4])
        drawn = [Image.open(path).tobytes() for path in paths[place::2]]
        assert drawn == [picture.tobytes() for picture in pictures]
    with pytest.raises(ValueError, match=r"strength=0\.5, but the concept of 'cat' .*: set strength=1, or"):
        personalar.sample_files(finished_run, PROMPTS[:1], [0], *base, *words, f"out={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def test_one_object_draws_again_and_alike(cat: Pipeline) -> None:
    first, second = cat.images(PROMPTS, range(2)), cat.images(PROMPTS[1:], [np.int64(1)])
    assert first[1].tobytes() == second[0].tobytes()


def test_a_negative_prompt_has_the_form_that_the_command_gives_it(
    finished_run: Path, base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cat, asked = personalar.load(finished_run, *base, "decoder.cfg_scale=3"), []
    monkeypatch.setattr(cat.generator, "images", lambda *_, **how: asked.append(how["negative_prompt"]))
    cat.images(PROMPTS[:1], [0], negative_prompt=" a  caf\u0065\u0301 ")
    assert asked == ["a caf\u00e9"]


def test_words_that_the_base_does_not_know_are_noted(cat: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cat.generator.backend, "known_words", ("a", "cat"))
    with pytest.warns(UserWarning, match="not trained on: moon"):
        cat.images(["a [V] cat moon"], [0])


def test_a_prompt_without_the_subject_is_noted(cat: Pipeline) -> None:
    with pytest.warns(UserWarning, match=r"'a cat' does not name the subject; write \[V\] before the noun"):
        cat.images(["a cat"], [0])


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ("a [V] cat", [0], r"both must be lists, such as \['a \[V\] cat'\] and \[0\]"),
        (["a [V] cat"], 0, "both must be lists"),
        (["a [V] cat"], [0, 1], r"1 prompts and 2 seeds: .*repeat the prompt, as in images\(\[prompt\] \* 4"),
        ([], [], "give at least one prompt"),
        ([" "], [0], "give at least one prompt"),
        (["a \ud800 [V]"], [0], "is not valid text .*: enter it again in UTF-8"),
        (["a [V] cat"], [-1], "seeds=-1 is out of range"),
        (["a [V] cat" * 500], [0], "tokens including its template, but this base reads"),
    ],
)
def test_what_cannot_be_drawn_is_said(cat: Pipeline, prompts, seeds, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cat.images(prompts, seeds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decoder=jacoby"], r"decoder='jacoby'; did you mean jacobi\?"),
        (["--help"], "'--help' is not a setting"),
        (["prompts=[a]"], r"load does not accept prompts=: .*arguments of images\(\)"),
    ],
)
def test_a_wrong_setting_is_said_as_on_the_command_line(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        personalar.load("anywhere", *settings)


def test_a_wrong_concept_is_said(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"concept=nowhere contains no concept\.json: give a concept"):
        personalar.load("nowhere")
    with pytest.raises(ValueError, match=r"other weights of base 'nano' .*: train it again, or set"):
        personalar.load(finished_run, "model=nano")  # not the shipped one, but the tests'
    for call in (personalar.load, lambda concepts: personalar.sample_files(concepts, ["a [V] cat"])):
        with pytest.raises(ValueError, match=r"concept=\[\]: give a folder"):
            call([])


def test_a_missing_gpu_is_said_before_a_download(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("personalar.generation.pipeline.obtain_model", pytest.fail)
    with pytest.raises(ValueError, match="trainer=gpu needs a GPU, and torch finds none: choose trainer=cpu"):
        personalar.load(finished_run, "trainer=gpu")


def test_a_folder_may_have_any_name_and_hydra_may_be_running(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from personalar.config.compose import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert sample_settings("a=b, [c] d", ["decoder.window=9", "decoder=jacobi"]).concepts == [
            "a=b, [c] d"
        ]
        assert GlobalHydra.instance().is_initialized()
        compose("doctor")


def test_the_readmes_example_runs(
    finished_run: Path, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: Callable[..., Pipeline] = personalar.load
    monkeypatch.setattr(personalar, "load", lambda concept, *settings: load(finished_run, *settings, *base))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if 'personalar.load("outputs/nano/cat"' in block)
    exec(example, {})
    assert list(tmp_path.glob("*.png"))
