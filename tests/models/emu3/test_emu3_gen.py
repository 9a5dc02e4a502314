"""Emu3-Gen against transformers' own class on the same tiny random weights; the published ids of prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from conftest_emu3 import CODES, NEGATIVE, emu3_model
from conftest_run import compose_config
from test_compiled import Taped
from tokenizers import AddedToken, decoders, models
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from personalar.concepts.adapters.lora import inject_lora, lora_files
from personalar.concepts.adapters.peft_names import to_transformers
from personalar.config.model_config import ProtocolConfig
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import cfg_combine, keep_top_k
from personalar.models.emu3 import PEFT_BASE
from personalar.models.emu3.emu3_backend import Emu3Backend
from personalar.models.emu3.emu3_vocabulary import (
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE,
    PAD,
    Emu3Vocabulary,
    code_name,
    extra,
)
from personalar.models.emu3.emu3_weights import Emu3Config
from personalar.models.emu3.one_frame_vq import OneFrameVQConfig
from personalar.models.image_transforms import to_model_range

TEXTS = ("a red cat", "a blue dog in the snow on the beach", "a teapot")
GREEDY = {"cfg_scale": 3.0, "temperature": 0.0}
GRID = (3, 5)


def allowed(backend: Any, start: int, h: int, w: int) -> Callable[[int, Tensor], list[int]]:
    """Return what transformers may draw after `start` ids, as its documentation writes it."""
    tokens, codes = backend.tokenizer, list(range(CODES))
    end = [tokens.eof, tokens.eoi, tokens.eos]

    def at(batch: int, ids: Tensor) -> list[int]:
        place = len(ids) - start
        if place >= h * (w + 1):
            return [end[place - h * (w + 1)]]
        return [tokens.eol] if place % (w + 1) == w else [code + tokens.codes.start for code in codes]

    return at


def hf_codes(backend: Any, text: str, h: int, w: int) -> Tensor:
    """Return what transformers' `generate` draws greedily with guidance 3, (h, w)."""
    prefix = backend.image_prefix(h, w)
    ids = [*backend.prompt_ids(text), *prefix]
    negative = [backend.tokenizer.bos, *backend.encode_text(NEGATIVE), *prefix]
    out = emu3_model().generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, guidance_scale=3.0,
        negative_prompt_ids=torch.tensor([negative]), max_new_tokens=h * (w + 1) + 3,
        prefix_allowed_tokens_fn=allowed(backend, len(ids), h, w),
    )[0, len(ids) :]  # fmt: skip
    assert out[-3:].tolist() == backend.grammar(h, w)[-3:]
    return out[:-3].view(h, w + 1)[:, :w] - backend.code_offset


@torch.no_grad()
def test_logits_are_those_of_transformers(emu3_backend: Any) -> None:
    codes = torch.arange(15).view(GRID)
    ids = torch.tensor([emu3_backend.training_sequence(TEXTS[1], codes, loss="image_tokens").ids])
    hidden = emu3_backend.forward(emu3_backend.embed(ids))
    theirs = emu3_model()(ids).logits
    torch.testing.assert_close(emu3_backend.transformer.logits(hidden), theirs, rtol=0, atol=1e-5)
    offset = emu3_backend.code_offset
    image = emu3_backend.image_logits(hidden)
    torch.testing.assert_close(image, theirs[..., offset : offset + CODES], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "decoder", [PlainDecoder(**GREEDY), Taped(bucket=8, **GREEDY)], ids=lambda d: type(d).__name__
)
def test_greedy_ids_are_those_of_transformers_for_prompts_of_mixed_length(
    decoder: Any, emu3_backend: Any
) -> None:
    prompts = [emu3_backend.prompt_ids(text) for text in TEXTS]
    assert len(set(map(len, prompts))) == 3
    codes = decoder(emu3_backend, prompts, GRID, [1, 2, 3])
    assert codes.unique().numel() > 4
    for drawn, text in zip(codes, TEXTS, strict=True):
        assert torch.equal(drawn, hf_codes(emu3_backend, text, *GRID))


def test_the_guided_law_is_that_of_upstreams_order() -> None:
    """Upstream: log-softmax over the whole vocabulary, guidance, the mask of the layout, top-k."""
    generator = torch.Generator().manual_seed(0)
    with_prompt, without = torch.randn(2, 8, 900, generator=generator, dtype=torch.float64) * 4
    codes = slice(300, 812)
    logs = [logits.log_softmax(-1) for logits in (with_prompt, without)]
    theirs = torch.full_like(with_prompt, float("-inf"))
    theirs[:, codes] = (logs[1] + 3 * (logs[0] - logs[1]))[:, codes]
    ours = cfg_combine(with_prompt[:, codes], without[:, codes], 3.0)
    law = keep_top_k(theirs, 200).softmax(-1)[:, codes]
    torch.testing.assert_close(keep_top_k(ours, 200).softmax(-1), law, rtol=0, atol=1e-7)


def test_a_dropped_prompt_leaves_bos_and_guidance_has_the_negative_prompt(emu3_backend: Any) -> None:
    tokens, prompt = emu3_backend.tokenizer, emu3_backend.prompt_ids(TEXTS[0])
    dropped = emu3_backend.unconditional_sequence(TEXTS[0], torch.zeros(GRID).long(), loss="image_tokens")
    assert dropped.ids[:2] == (tokens.bos, tokens.boi)
    context = emu3_backend.unconditional_prompt(prompt)
    assert emu3_backend.negative_prompt(NEGATIVE) == context
    assert context == [tokens.bos, *emu3_backend.encode_text(NEGATIVE)]


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_one_frame_gives_the_codes_and_pictures_of_four(size: tuple[int, int], emu3_backend: Any) -> None:
    theirs, generator = emu3_model().model.vqmodel, torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator)
    codes = emu3_backend.encode_images(images)
    assert codes.unique().numel() > 4
    expected = theirs.encode(to_model_range(images), torch.tensor([size] * 2)).image_tokens
    assert torch.equal(codes, torch.stack(expected))
    pictures = (theirs.decode(codes).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(emu3_backend.decode_images(codes), pictures, rtol=0, atol=1e-4)


def test_statistics_stay_even_in_training_mode(emu3_backend: Any) -> None:
    vq = copy.deepcopy(emu3_backend.vq).train()
    before = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    codes = vq.encode(to_model_range(images))
    assert torch.equal(codes, emu3_backend.encode_images(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())


WORDS = {
    "a": 64, "Ġpuppy": 41189, "Ġportrait": 33033, "Ġof": 315, "Ġyoung": 3908, "Ġgirl": 3743, ".": 13, ",": 11,
    "Ġmasterpiece": 58731, "Ġfilm": 4531, "Ġgr": 1081, "ained": 2627, "Ġbest": 1850, "Ġquality": 4271,
    "Ġphoto": 6548, "Ġ": 220, "Ġdog": 5562, "low": 10303, "res": 416, "Ġbad": 3873, "Ġanatomy": 61590,
    "Ġhands": 6078, "Ġtext": 1467, "Ġerror": 1465, "Ġmissing": 7402, "Ġfingers": 19225, "Ġextra": 4960,
    "Ġdigit": 15723, "Ġfewer": 16745, "Ġdigits": 18509, "Ġcropped": 60143, "Ġworst": 11785, "Ġlow": 3347,
    "Ġnormal": 4622, "Ġjpeg": 54566, "Ġartifacts": 35036, "Ġsignature": 11957, "Ġwatermark": 88006,
    "Ġusername": 5934, "Ġblurry": 99055, "close": 5552, "-up": 5239, "-": 12, "up": 454, "*": 9, "ca": 924,
    "fÃ©": 58858, "DON": 84641, "'T": 17323, **{str(digit): 15 + digit for digit in range(10)},
}  # fmt: skip
"""The pieces of Emu3's vocabulary that occur in the golden prompts, with their ids."""
JOINED = ("Ġgr", "ained", "low", "res", "ca", "fÃ©", "DON", "'T")
"""Pieces that are parts of a longer word, so merges must lead to them."""


@pytest.fixture(scope="module")
def published() -> Emu3Vocabulary:
    """The published ids of the special tokens and of a few words; words alone, others by merges."""
    free = (index for index in range(150000, 151643) if index not in WORDS.values())
    merges = [(piece[:end], piece[end]) for piece in JOINED for end in range(1, len(piece))]
    helpers = dict.fromkeys([*bytes_to_unicode().values(), *(left + right for left, right in merges)])
    pieces = {name: next(free) for name in helpers if name not in WORDS} | WORDS
    names = [PAD, "<|im_start|>", "<|im_end|>", *map(extra, range(205)), IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE]
    special = {name: 151643 + place for place, name in enumerate([*names, *map(code_name, range(8))])}
    backend = tokenizers.Tokenizer(models.BPE({**pieces, **special}, merges, ignore_merges=True))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    return Emu3Vocabulary(backend)


YOUNG = [64, 33033, 315, 3908, 3743, 13, 58731, 11, 4531, 1081, 2627, 11, 1850, 4271, 13]
LOWRES = [
    10303, 416, 11, 3873, 61590, 11, 3873, 6078, 11, 1467, 11, 1465, 11, 7402, 19225, 11, 4960, 15723, 11,
    16745, 18509, 11, 60143, 11, 11785, 4271, 11, 3347, 4271, 11, 4622, 4271, 11, 54566, 35036, 11, 11957, 11,
    88006, 11, 5934, 11, 99055, 13,
]  # fmt: skip


def without_weights(tokenizer: Emu3Vocabulary, layout: ProtocolConfig) -> Emu3Backend:
    """Return a backend whose tensors are on `meta`."""
    codes = tokenizer.codes.stop - tokenizer.codes.start
    with torch.device("meta"):
        transformer = Emu3Config(num_hidden_layers=1).build()
        vq = OneFrameVQConfig(num_embeddings=codes).build()
        return Emu3Backend(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=layout)


def test_golden_ids_of_prompts(published: Emu3Vocabulary) -> None:
    config = compose_config("+subject=cat", "model=emu3_gen").model.layout
    published.check_ids(config.ids)
    backend = without_weights(published, config)
    size = [151852, 24, 15, 9, 24, 15, 151851]
    assert backend.image_prefix(90, 90) == size
    prompt = backend.prompt_ids("a portrait of young girl.")
    assert prompt == [151849, *YOUNG] and len([*prompt, *size]) == 23
    assert backend.unconditional_prompt(prompt) == [151849, *LOWRES] and len([151849, *LOWRES, *size]) == 52
    assert backend.dropped_prompt(prompt) == [151849]
    assert published.encode_text("a puppy") == [64, 41189]
    with_v = backend.prompt_ids("a photo of [V] dog", None, {"[V]": published.concept_ids[0]})
    assert with_v[:7] == [151849, 64, 6548, 315, 220, 151647, 5562]
    assert backend.image_prefix(64, 64) == [151852, 21, 19, 9, 21, 19, 151851]


def test_words_are_split_by_qwens_pattern_after_nfc(published: Emu3Vocabulary) -> None:
    assert published.encode_text("close-up") == [5552, 5239]
    assert published.encode_text("cafe\N{COMBINING ACUTE ACCENT}") == [924, 58858]
    assert published.encode_text("DON'T") == [84641, 17323]
    assert not set(published.encode_text(f"a {IMAGE} {extra(1)} {code_name(3)} <image>")) & set(
        range(151643, 184622)
    )


def test_golden_ids_of_special_tokens(published: Emu3Vocabulary) -> None:
    tokens = published
    assert (tokens.pad, tokens.eol, tokens.eof, tokens.bos, tokens.eos) == (
        151643, 151846, 151847, 151849, 151850,
    )  # fmt: skip
    assert (tokens.image, tokens.boi, tokens.eoi) == (151851, 151852, 151853)
    assert tokens.codes.start == 151854
    assert tokens.concept_ids == tuple(range(151647, 151846))


@pytest.mark.parametrize(
    ("model", "size", "grid"),
    [
        ("emu3_gen", (720, 720), (90, 90)), ("emu3_gen", (832, 624), (78, 104)),
        ("emu3_gen", (880, 584), (73, 110)), ("emu3_gen", (960, 544), (68, 120)),
        ("emu3_gen", (544, 960), (120, 68)), ("emu3_stage1_512", (512, 512), (64, 64)),
    ],
)  # fmt: skip
def test_lengths_and_sizes(
    model: str, size: tuple[int, int], grid: tuple[int, int], published: Emu3Vocabulary
) -> None:
    config = compose_config("+subject=cat", f"model={model}").model.layout
    backend, (h, w) = without_weights(published, config), grid
    assert size in config.sizes and backend.code_shape(size) == grid
    after = backend.grammar(h, w)[len(backend.image_prefix(h, w)) :]
    assert len(after) == (w + 1) * h + 3 and after.count(None) == h * w
    assert after[-5:] == [None, 151846, 151847, 151853, 151850]
    assert grid != (90, 90) or len(after) == 8193


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def test_an_adapter_is_loaded_by_peft_on_transformers_class(emu3_files: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    ours = emu3_files.load(dtype=torch.float32, device="cpu")
    for parameter in inject_lora(ours.transformer, rank=2, generator=seeded()).values():
        parameter.copy_(torch.randn(parameter.shape, generator=seeded()))
    exported = to_transformers(lora_files(ours.transformer), stack=PEFT_BASE.stack)
    (tmp_path / "lora").mkdir()
    for name, data in exported.items():
        (tmp_path / name).write_bytes(data)
    model = PeftModel.from_pretrained(copy.deepcopy(emu3_model()), tmp_path / "lora")
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 3 * 2 and all(".text_model.layers." in name for name in adapted)
    ids = torch.tensor([ours.prompt_ids(TEXTS[1])])
    hidden = ours.forward(ours.embed(ids))
    torch.testing.assert_close(ours.transformer.logits(hidden), model(ids).logits, rtol=0, atol=1e-4)
