"""Image sizes of a base: validation, the same prompt as in training, and correct pictures in any size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest_backend import make_backend
from PIL import Image

import personalar
import personalar.generation.generator as generator_module
import personalar.sample
from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.concept import Concept
from personalar.config.model_config import ProtocolConfig
from personalar.core.files import base_fingerprint
from personalar.core.image_sizes import read_size
from personalar.core.png import read_png_metadata
from personalar.generation import batching
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.generation.requests import encode_prompts, length_note
from personalar.models.base import PICTURES_AT_ONCE
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.model_files import open_folder
from personalar.models.chameleon.serialization import save_backend

SIZES = [(64, 16), (48, 16), (32, 16), (32, 32), (16, 32), (16, 48), (16, 64)]
PROMPT = "a photo of a [V] cat"


@pytest.fixture(scope="module")
def several() -> ChameleonBackend:
    """A base of 32 px with several image sizes."""
    return make_backend(buckets="aspect")


@pytest.fixture(scope="module")
def generator(several: ChameleonBackend) -> Generator:
    return Generator(
        backend=several, decoder=PlainDecoder(cfg_scale=2.0), identifier=identifier(several), batch=3
    )


def identifier(backend: ChameleonBackend) -> Identifier:
    return Identifier(tokens={"[V]": backend.tokenizer.concept_ids[0]}, rows=torch.ones(1, 32))


def test_a_layout_says_its_sizes(several: ChameleonBackend) -> None:
    assert several.sizes == SIZES == ProtocolConfig(grid_px=16, resolution=32).sizes
    assert ProtocolConfig(resolution=512).square == (512, 512)
    assert ProtocolConfig(resolution=512, buckets="square").sizes == [(512, 512)]


LUMINA_512 = ProtocolConfig(resolution=512).sizes


@pytest.mark.parametrize(
    ("text", "sizes", "message"),
    [
        (
            "768x512",
            LUMINA_512,
            "size=768x512 is not one of this base's sizes; it has 49, nearest in shape: 608x416, 608x384, ",
        ),
        ("1024x1024", LUMINA_512, "nearest in shape: 512x512, 512x480, "),
        ("16x16", SIZES, "allowed: 32x32, 32x16, 16x32, 48x16, 16x48, 64x16, 16x64$"),
        ("416x608", [(512, 512)], "size=416x608: this base only generates 512x512; omit size"),
        ("512", LUMINA_512, "size='512' is not a size: write width x height in pixels, such as size=608x416"),
        ("608X416", LUMINA_512, "is not a size"),
        ("608x416\n", LUMINA_512, "is not a size"),
        ("-608x416", LUMINA_512, "is not a size"),
        ("0x0", LUMINA_512, "is not a size"),
        ((608, 416), LUMINA_512, r"size=\(608, 416\) is not a size"),
    ],
)
def test_a_size_that_a_base_does_not_know(text, sizes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_size(text, sizes)


def test_every_size_of_a_base_is_read_width_first() -> None:
    assert [read_size(f"{width}x{height}", LUMINA_512) for width, height in LUMINA_512] == LUMINA_512


@pytest.mark.parametrize("size", SIZES)
def test_the_base_is_asked_as_it_was_trained(several: ChameleonBackend, size: tuple[int, int]) -> None:
    """All ids before the first image code are those of a training sequence of that size."""
    learned, (h, w) = identifier(several), (size[1] // 8, size[0] // 8)
    codes = torch.zeros(h, w, dtype=torch.int64)
    trained = several.training_sequence(PROMPT, codes, learned.tokens, loss="answer").ids
    (prompt,) = encode_prompts(several, [PROMPT], learned, size=size)
    asked = [*prompt, *several.grammar(h, w)]
    assert list(trained[: asked.index(None)]) == asked[: asked.index(None)]
    assert len(trained) == len(asked) + 1  # the last separator


@pytest.mark.parametrize("size", [(64, 16), (16, 48), None])
def test_equal_prompt_seed_and_size_give_an_equal_picture(generator: Generator, size) -> None:
    one = generator.images([PROMPT], [5], size=size)[0]
    many = generator.images(["a dog", "a cat in the snow", "a boot", PROMPT], [5, 5, 1, 5], size=size)
    assert one.size == (size or (32, 32)) and many[3].tobytes() == one.tobytes() != many[0].tobytes()
    jacobi = JacobiDecoder(cfg_scale=2.0, window=3)
    other = Generator(backend=generator.backend, decoder=jacobi, identifier=generator.identifier)
    assert other.images([PROMPT], [5], size=size)[0].tobytes() == one.tobytes()


def test_another_size_is_another_picture_of_the_same_model(generator: Generator) -> None:
    square = generator.images([PROMPT], [5])[0]
    assert generator.images([PROMPT], [5], size=(32, 32))[0].tobytes() == square.tobytes()
    wide, tall = (generator.codes([PROMPT], [5], size=size)[0] for size in ((64, 16), (16, 64)))
    assert (
        wide.shape == (2, 8) and tall.shape == (8, 2) and wide.flatten().tolist() != tall.flatten().tolist()
    )


def test_what_fits_depends_on_the_size(several: ChameleonBackend, monkeypatch) -> None:
    """By its tokens, newlines among them, and by its pixels, which are decoded beside the drawing."""
    images, free = Generator(backend=several, decoder=PlainDecoder(), batch=1000), 2**21
    token_bytes = 2 * 2 * 32 * 4  # two layers, keys and values, 32 channels, float32
    monkeypatch.setattr(generator_module, "free_bytes", lambda device: free)
    fits = {}
    for width, height in SIZES:
        grid = (height // 8, width // 8)
        (prompt,) = encode_prompts(several, ["a cat"], None, size=(width, height))
        rest = free - several.decode_bytes(PICTURES_AT_ONCE, grid)
        tokens = len(prompt) + len(several.grammar(*grid))
        fits[width, height] = images.fitting_batch(["a cat"], size=(width, height))
        assert fits[width, height] == int(batching.CACHE_SHARE * rest // (token_bytes * tokens))
    assert fits[32, 16] > fits[48, 16] > fits[64, 16] > fits[32, 32] > fits[16, 64]
    assert images.fitting_batch(["a cat"]) == fits[32, 32]


def test_a_picture_of_more_tokens_leaves_less_room_for_its_prompt(several: ChameleonBackend) -> None:
    wide, tall = (256 - len(several.grammar(*shape)) for shape in ((2, 8), (8, 2)))
    assert wide - tall == 6  # newlines
    fits = "\x01" * (wide - len(encode_prompts(several, [""], None, size=(64, 16))[0]))
    for size, note in (((64, 16), None), ((16, 64), f"shorten the prompt to {tall} tokens")):
        ids = encode_prompts(several, [fits], None, size=size)
        told = length_note(several, [fits], ids, size)
        assert len(ids[0]) == wide and (told is None if note is None else told.endswith(note))


@pytest.fixture
def concept(several: ChameleonBackend, tmp_path: Path) -> list[str]:
    """Settings to sample a concept on a base with several image sizes."""
    base = save_backend(several, tmp_path / "base", dtype=torch.float32)
    of = {"name": "nano", "fingerprint": base_fingerprint(open_folder(base).weights())}
    subject = {"name": "tom", "noun": "cat", "fingerprint": "f"}
    own = identifier(several)
    made = Concept(base=of, subject=subject, stage="embedding", tokens=own.tokens, rows=own.rows.detach())
    made.save(tmp_path / "concept")
    return [str(tmp_path / "concept"), f"model.path={base}", "trainer.threads=1"]


def test_the_command_draws_the_size_that_it_is_given(concept, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {}
    for size in ("64x16", "32x32", None):
        words = [f"concept={concept[0]}", f'prompts=["{PROMPT}"]', "seeds=[3]", f"out={size}", *concept[1:]]
        monkeypatch.setattr(sys, "argv", ["sample", *words, *([f"size={size}"] if size else [])])
        personalar.sample.main()
        (path,) = (tmp_path / str(size)).glob("*.png")
        names[size] = path.name
        assert read_png_metadata(path)["size"] == (size or "32x32")
        (again,) = personalar.load(*concept).images([PROMPT], [3], size=size)
        with Image.open(path) as picture:
            assert picture.size == again.size and picture.tobytes() == again.tobytes()
    assert names["64x16"] != names[None]  # both may lie in one folder
    assert names["32x32"] == names[None]  # it is the same picture


def test_a_wrong_size_is_said_before_the_weights_are_read(concept, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("personalar.models.chameleon.model_files.ChameleonFiles.load", None)
    words = [f"concept={concept[0]}", f'prompts=["{PROMPT}"]', *concept[1:], "size=64x64"]
    monkeypatch.setattr(sys, "argv", ["sample", *words])
    with pytest.raises(
        SystemExit, match=r"personalar\.sample: size=64x64 is not one of this base's sizes; allowed"
    ):
        personalar.sample.main()


def test_python_says_the_same(concept) -> None:
    cat = personalar.load(*concept)
    with pytest.raises(ValueError, match="size=64x64 is not one of this base's sizes; allowed: 32x32, "):
        cat.images([PROMPT], [0], size="64x64")
    with pytest.raises(ValueError, match=r"load does not accept size=: .*arguments of images\(\)"):
        personalar.load(*concept, "size=64x16")
