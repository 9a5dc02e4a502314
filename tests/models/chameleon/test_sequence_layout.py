"""The sequence layout against golden numbers of Lumina-mGPT, and back again from any sequence."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest_backend import NUM_CODES, TINY_VQ, make_tokenizer, parse_image, without_weights
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.core.image_sizes import bucket_sizes
from personalar.models.chameleon.model_files import check_layout
from personalar.models.network.vq import VQConfig

TOKENIZER = make_tokenizer()
CONFIG = ProtocolConfig(grid_px=16, resolution=32, buckets="square")
BACKEND = without_weights(CONFIG, TOKENIZER)


class LuminaIds:
    """The special ids of the 7B's vocabulary (65536 entries), without its text."""

    bos, pad, eoi, boi, sep, newline = 0, 1, 8196, 8197, 8710, 8803
    code_offset, num_codes, image_rows = 4, 8192, slice(4, 8196)
    vocab_size, concept_ids = 65536, ()

    def size_id(self, grids: int) -> int:
        return 8804 + grids

    def encode_text(self, text: str) -> list[int]:
        return [16384 + byte for byte in text.encode()]


LUMINA = without_weights(ProtocolConfig(), LuminaIds(), VQConfig())


def codes_of(h: int, w: int, seed: int = 0, num_codes: int = NUM_CODES) -> Tensor:
    return torch.randint(0, num_codes, (h, w), generator=torch.Generator().manual_seed(seed))


def test_golden_tiny_image() -> None:
    codes = torch.arange(8).view(2, 4)  # 64x32 px, width x height
    expected = [8197, 8805, 8806, 4, 5, 6, 7, 8803, 8, 9, 10, 11, 8803, 8196]
    assert LUMINA.image_ids(codes) == expected
    assert torch.equal(parse_image(LUMINA, expected), codes)


def test_golden_prompt() -> None:
    text = "Generate an image of 512x768 according to the following prompt:\na dog"
    assert LUMINA.prompt_ids("a dog", (512, 768)) == [0, *LuminaIds().encode_text(text), 8710]
    assert LUMINA.code_shape((512, 768)) == (48, 32)


@given(
    gh=st.integers(1, 8),
    gw=st.integers(1, 8),
    seed=st.integers(0, 99),
    prompt=st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
)
def test_round_trip(gh: int, gw: int, seed: int, prompt: str) -> None:
    codes = codes_of(2 * gh, 2 * gw, seed)
    sequence = BACKEND.training_sequence(prompt, codes, loss="image_tokens")
    assert torch.equal(parse_image(BACKEND, sequence.ids), codes)
    assert torch.equal(
        parse_image(BACKEND, BACKEND.unconditional_sequence("a cat", codes, loss="image_tokens").ids), codes
    )
    image = BACKEND.image_ids(codes)
    grammar = BACKEND.grammar(2 * gh, 2 * gw)
    assert len(image) == len(grammar) == 2 * gh * (2 * gw + 1) + 4
    assert all(forced in (None, got) for got, forced in zip(image, grammar, strict=True))
    assert grammar.count(None) == codes.numel()


def test_concept_tokens_are_inserted() -> None:
    v, s1, s10 = TOKENIZER.concept_ids[:3]
    names = {"[V]": v, "[S1]": s1, "[S10]": s10}
    ids = BACKEND.prompt_ids("a [V] cat [S10] [S1]", None, names)
    assert [index for index in ids if index in (v, s1, s10)] == [v, s10, s1]
    before, after = BACKEND.prompt_ids("a ")[:-1], TOKENIZER.encode_text(" cat ")
    assert ids == [*before, v, *after, s10, *TOKENIZER.encode_text(" "), s1, TOKENIZER.sep]
    assert v not in BACKEND.prompt_ids("a [V] cat")


def test_masks() -> None:
    codes = codes_of(4, 4)
    tokens = BACKEND.training_sequence("a cat", codes, loss="image_tokens")
    answer = BACKEND.training_sequence("a cat", codes, loss="answer")
    assert tokens.ids == answer.ids
    supervised = [index for index, on in zip(tokens.ids, tokens.loss_mask, strict=True) if on]
    assert supervised == (codes.flatten() + TOKENIZER.code_offset).tolist()
    prompt_length = len(BACKEND.prompt_ids("a cat"))
    assert answer.loss_mask == (False,) * prompt_length + (True,) * (len(answer.ids) - prompt_length)
    assert answer.ids[prompt_length] == TOKENIZER.boi and answer.ids[-1] == TOKENIZER.sep


def test_a_grid_that_splits_a_code_is_refused() -> None:
    with pytest.raises(ValueError, match="grid_px=16 must be a multiple of 32"):
        without_weights(CONFIG, TOKENIZER, dataclasses.replace(TINY_VQ, channel_multiplier=(1,) * 4))


def test_a_size_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sides of 16 x grid_px pixels, .* only up to 8 x grid_px"):
        without_weights(dataclasses.replace(CONFIG, resolution=256), TOKENIZER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"buckets": "round"}, "layout.buckets='round'; allowed: square, aspect"),
        ({"resolution": 100}, "layout.resolution=100 must be a multiple of layout.grid_px=32"),
        ({"prompt_template": "draw"}, "must contain {prompt}"),
        ({"structure": "spiral"}, "layout.structure='spiral'; allowed: rows, flat"),
        ({"structure": "flat"}, "it needs layout.buckets=square"),
        ({"unconditional": "all"}, "allowed: image, separator, bos"),
        ({"resize": "nearest"}, "allowed: halving, lanczos"),
    ],
)
def test_config_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layout(ProtocolConfig(**change))


FLAT_CONFIG = ProtocolConfig(
    grid_px=16,
    resolution=32,
    buckets="square",
    structure="flat",
    unconditional="bos",
    prompt_template="{prompt}",
)
FLAT = without_weights(FLAT_CONFIG, TOKENIZER)


def test_chameleons_layout_is_flat() -> None:
    codes = codes_of(4, 4)
    t = TOKENIZER
    ids = [t.boi, *(codes.flatten() + t.code_offset).tolist(), t.eoi]
    assert FLAT.image_ids(codes) == ids and FLAT.image_prefix(4, 4) == [t.boi]
    assert torch.equal(parse_image(FLAT, ids), codes)
    assert FLAT.prompt_ids("a cat") == [t.bos, *t.encode_text("a cat"), t.sep]
    assert FLAT.grammar(4, 4) == [t.boi, *[None] * 16, t.eoi]
    dropped = FLAT.unconditional_sequence("a cat", codes, loss="answer")
    assert dropped.ids == (t.bos, *ids) and dropped.loss_mask == (False, *[True] * 18)


@pytest.mark.parametrize(("resolution", "longest"), [(512, 1088), (768, 2400), (1024, 4224)])
def test_every_bucket_round_trips(resolution: int, longest: int) -> None:
    """Every image size of a published model: height before width, newlines, lengths, and back."""
    bodies = []
    for width, height in bucket_sizes(resolution, 32):
        h, w = LUMINA.code_shape((width, height))
        codes = torch.arange(h * w).view(h, w) % 8192
        ids = LUMINA.image_ids(codes)
        bodies.append(len(ids) - 4)
        assert ids[1:3] == [8804 + height // 32, 8804 + width // 32] and bodies[-1] == h * (w + 1)
        assert [place for place, index in enumerate(ids) if index == 8803] == [
            3 + row * (w + 1) + w for row in range(h)
        ]
        assert torch.equal(parse_image(LUMINA, [0, 300, 8710, *ids, 8710]), codes)
        text = f"Generate an image of {width}x{height} according to the following prompt:\n"
        assert LUMINA.prompt_ids("", (width, height)) == [0, *LuminaIds().encode_text(text), 8710]
    assert max(bodies) == longest


def test_the_dropped_prompt_leaves_tokens_that_are_all_labels() -> None:
    """Upstream's rule: tokens and labels become the supervised ones without the last separator."""
    codes = codes_of(4, 4, num_codes=8192)
    full, dropped = (
        LUMINA.training_sequence("a cat", codes, loss="answer"),
        LUMINA.unconditional_sequence("a cat", codes, loss="answer"),
    )
    supervised = tuple(index for index, on in zip(full.ids, full.loss_mask, strict=True) if on)
    assert supervised[-1] == 8710 and dropped.ids == supervised[:-1] and all(dropped.loss_mask)
    assert dropped.ids == tuple(LUMINA.image_ids(codes)) and (dropped.ids[0], dropped.ids[-1]) == (8197, 8196)
    assert sum(LUMINA.unconditional_sequence("a cat", codes, loss="image_tokens").loss_mask) == codes.numel()
