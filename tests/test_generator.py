"""From prompts to pictures: what is asked for, in which order, and that what exists is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from personalar.callbacks.sample_grid import grid_picture
from personalar.callbacks.subject_scores import SubjectScores
from personalar.decoding.plain import PlainDecoder
from personalar.generator import (
    Generator,
    chunks,
    generate_files,
    have_files,
    pick_grid_prompts,
    requests_for,
)
from personalar.types import PromptSpec

SPECS = (
    PromptSpec(text="a photo of a {}", category="plain"),
    PromptSpec(text="a {} in the snow", category="recontext", context="snow"),
    PromptSpec(text="a {} on the beach", category="recontext", context="beach"),
    PromptSpec(text="a {} with a hat", category="accessory", accessory="hat"),
)
KINDS = ("subject", "class", "description")


def ask(stage: str, *, seeds=(0, 1), description="red cat"):
    return requests_for(stage, SPECS, seeds=seeds, kinds=KINDS, noun="cat", description=description)


@pytest.fixture(scope="module")
def generator(tiny_backend) -> Generator:
    return Generator(backend=tiny_backend, decoder=PlainDecoder(cfg_scale=2.0), batch=3)


def test_what_each_stage_is_judged_by() -> None:
    assert len(ask("base")) == 4 * 2 * 3 and len(ask("embedding")) == 4 * 2 * 2
    assert len(ask("base", description=None)) == 4 * 2 * 2
    assert {r.prompt for r in ask("transformer") if r.kind == "subject" and r.spec == SPECS[1]} == {
        "a [V] cat in the snow"
    }


def test_grids_take_turns_between_categories() -> None:
    assert pick_grid_prompts(SPECS, 3) == [SPECS[0], SPECS[1], SPECS[3]]
    assert pick_grid_prompts(SPECS, 9) == [SPECS[0], SPECS[1], SPECS[3], SPECS[2]]


def test_equal_prompts_and_seeds_are_sampled_once(generator, monkeypatch) -> None:
    drawn = []
    whole = generator.images
    monkeypatch.setattr(generator, "images", lambda p, s: drawn.extend(p) or whole(p, s))
    samples = generator.samples(ask("base", seeds=(0,), description=None))
    assert len(samples) == 8 and len(drawn) == 4  # on the base the subject is its class
    assert samples[0].image.tobytes() == samples[4].image.tobytes()
    assert samples[0].image.size == (32, 32)


def test_a_picture_depends_on_prompt_and_seed_alone(generator) -> None:
    one = generator.images(["a cat"], [5])[0]
    many = generator.images(["a dog", "a cat in the snow", "a boot", "a cat"], [5, 5, 1, 5])
    assert many[3].tobytes() == one.tobytes() != many[0].tobytes()


def test_batches_do_not_depend_on_what_exists() -> None:
    requests = ask("base")
    grid = requests[:2]
    batches = chunks(requests, 8, first=grid)
    assert batches[0] == grid and sum(map(len, batches)) == len(requests)
    assert sorted(repr(request) for batch in batches for request in batch) == sorted(map(repr, requests))


def test_files_are_written_once_and_read_back(generator, tmp_path: Path) -> None:
    requests = ask("base", seeds=(0,))
    assert not have_files(requests, tmp_path)
    made = generate_files(requests, generator, tmp_path, provenance={"base": "tiny"})
    assert have_files(requests, tmp_path)
    found = generate_files(requests, None, tmp_path, provenance={})
    assert [(s.prompt, s.kind, s.seed, s.spec) for s in found] == [
        (s.prompt, s.kind, s.seed, s.spec) for s in made
    ]
    assert [s.image.tobytes() for s in found] == [s.image.tobytes() for s in made]


def test_the_base_stands_above_the_tuned_model(generator) -> None:
    samples = generator.samples(ask("embedding", seeds=(0,))[:3])
    base = {(sample.spec.text, 0): sample.image for sample in samples}
    alone = grid_picture(samples, {}, label="step 5", title="t")
    beside = grid_picture(samples, base, label="step 5", title="t")
    assert beside.width == alone.width and beside.height > 1.5 * alone.height


def test_means_are_named_for_curves() -> None:
    logged: dict[str, float] = {}
    lines = [
        {"seed": 0, "scorer": "dino", "value": 1.0},
        {"seed": 1, "scorer": "dino", "value": 0.0},
        {"seed": 0, "scorer": "clip_t", "value": 0.3},
    ]
    module = SimpleNamespace(device="cpu", log_dict=logged.update)
    callback = SubjectScores(lambda samples: lines)
    for _ in range(2):  # the second validation begins afresh
        callback.on_validation_batch_end(None, module, [])
        callback.on_validation_epoch_end(None, module)
        assert {name: round(float(value), 6) for name, value in logged.items()} == {
            "val/dino": 0.5,
            "val/clip_t": 0.3,
        }
