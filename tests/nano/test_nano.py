"""The shipped base does what experiments/nano_base says, on pictures and prompts that no training saw.

Bounds lie a little below the measured numbers: they catch a broken weight file, not a lucky seed.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_backend import load_backend
from PIL import Image

from personalar.config.compose import package_path
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.nano.world.album import Picture, draw
from personalar.nano.world.captions import place
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.scene import CLASSES, sample_instance, sample_scene
from personalar.nano.world.subjects import rendered_subject, subject_instance
from personalar.scoring.features import ClipScorer, DinoScorer


@pytest.fixture(scope="module")
def folder() -> Path:
    return package_path("package://nano")


@pytest.fixture(scope="module")
def backend(folder: Path) -> ChameleonBackend:
    return load_backend(folder)


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipScorer:
    return ClipScorer(folder / "clip")


def pictures(seed: int, count: int) -> tuple[list[Image.Image], list[str], list[str]]:
    rng = np.random.default_rng([seed, 999])
    nouns = [CLASSES[i % len(CLASSES)] for i in range(count)]
    places = [str(rng.choice(list(CONTEXTS))) for _ in nouns]
    made = [
        draw(Picture(scenes=(sample_scene(sample_instance(noun, rng), rng, context=context),)))
        for noun, context in zip(nouns, places, strict=True)
    ]
    return made, nouns, places


def nearest(clip: ClipScorer, images: list[Image.Image], texts: list[str]) -> list[int]:
    return (clip.image_features(images) @ clip.text_features(texts).T).argmax(1).tolist()


def class_accuracy(clip: ClipScorer, images: list[Image.Image], nouns: list[str]) -> float:
    found = nearest(clip, images, [f"a photo of a {noun}" for noun in CLASSES])
    return float(np.mean([CLASSES[i] == noun for i, noun in zip(found, nouns, strict=True)]))


def test_everything_together_is_at_most_60_megabytes(folder: Path):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 60e6


def test_the_image_tokenizer_keeps_the_picture_and_uses_its_codes(backend: ChameleonBackend):
    images, _, _ = pictures(1, 48)
    x = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 255
    codes = backend.encode_images(x)
    psnr = -10 * (backend.decode_images(codes) - x).square().mean((1, 2, 3)).log10()
    assert psnr.mean() > 26.5
    assert len(codes.unique()) > 0.7 * backend.vq.config.num_embeddings  # 12,288 draws of 4096 codes


def test_the_scorers_see_class_and_place(clip: ClipScorer):
    images, nouns, places = pictures(2, 60)
    assert class_accuracy(clip, images, nouns) > 0.8
    names = list(CONTEXTS)
    right = [
        names[nearest(clip, [image], [f"a {noun}{place(name)}" for name in names])[0]] == context
        for image, noun, context in zip(images[:24], nouns, places, strict=False)
    ]
    assert np.mean(right) > 0.9


def test_the_instance_scorer_puts_the_subject_above_its_class(folder: Path):
    dino = DinoScorer(folder / "dino")
    subject = rendered_subject("cat", 5)
    references = dino.features(subject.train)
    rng = np.random.default_rng([5, 3])
    cat, cats = subject_instance("cat", 5), [sample_instance("cat", rng) for _ in CONTEXTS]
    twins = [replace(cat, skin=other.skin) for other in cats[::2]]
    twins += [replace(cat, proportions=other.proportions) for other in cats[1::2]]
    pairs = zip(twins, CONTEXTS, strict=True)
    scenes = [sample_scene(twin, rng, context=context) for twin, context in pairs]
    negatives = [draw(Picture(scenes=(scene,))) for scene in scenes]
    likeness = {
        name: float((dino.features(images) @ references.T).mean())
        for name, images in (
            ("same", subject.holdout[:14]),  # plain and in places; the rest wears something or is recoloured
            ("other", subject.others[:14]),
            ("twin", negatives),
        )
    }
    assert likeness["same"] > likeness["twin"] > likeness["other"]
    assert likeness["same"] - likeness["other"] > 0.4


def test_the_base_draws_what_a_prompt_says(backend: ChameleonBackend, clip: ClipScorer):
    nouns = [*CLASSES, *CLASSES]
    names = [list(CONTEXTS)[i % 12] for i in range(24)]
    decoder = PlainDecoder(cfg_scale=3.0, top_p=0.95)
    prompts = [f"a photo of a {noun}{place(name)}" for noun, name in zip(nouns, names, strict=True)]
    images = Generator(backend=backend, decoder=decoder, batch=24).images(prompts, list(range(24)))
    assert class_accuracy(clip, images, nouns) > 0.6
    texts = [[f"a {noun}{place(name)}" for name in CONTEXTS] for noun in nouns]
    right = [
        list(CONTEXTS)[nearest(clip, [image], asked)[0]] == name
        for image, asked, name in zip(images, texts, names, strict=True)
    ]
    assert np.mean(right) > 0.85


def test_transformers_reads_the_shipped_folder(folder: Path, backend: ChameleonBackend):
    from transformers import ChameleonForConditionalGeneration

    theirs = ChameleonForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.float32).eval()
    ids = torch.tensor([backend.prompt_ids("a photo of a cat in the snow")])
    with torch.no_grad():
        expected = theirs.model(input_ids=ids).last_hidden_state
        got = backend(backend.embed(ids))
    assert torch.allclose(got, expected, atol=1e-4, rtol=1e-4)
