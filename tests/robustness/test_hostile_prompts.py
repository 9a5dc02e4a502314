"""Hostile prompts: any input is read as text or is an error; it never changes the sequence's structure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest_backend import is_special, make_tokenizer, parse_image, without_weights
from conftest_run import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.model_config import ProtocolConfig
from personalar.config.run_config import SubjectConfig
from personalar.data.prompts import plain_prompts
from personalar.data.subject import load_subject
from personalar.generation.chosen_concepts import check_words
from personalar.generation.generator import Generator
from personalar.generation.requests import encode_prompts

TOKENIZER = make_tokenizer()
BACKEND = without_weights(ProtocolConfig(grid_px=16, resolution=32, buckets="square"), TOKENIZER)
NAMES = dict(zip(("[V]", "[S1]", "[S2]"), TOKENIZER.concept_ids, strict=False))
SPECIAL = ["<s>", "</s>", "<pad>", "<eoss>", "<racm3:break>", "<reserved08706>", "<reserved08799>",
           "<image>",
           "<|image|>", "<sentinel:3>", "IMGIMGAZ", "IMGIMGBCZ", "<reserved09004>"]  # fmt: skip
ODD = ["\x00", "\x1b[31m", "\u202e", "\u200f", "שלום", "مرحبا", "👩‍👩‍👧‍👦", "🏳️‍🌈", "\ufeff", "\u2028",
       "\r\n", "\t",
       "{", "}", "{prompt}", "%s", "a\u0301" * 9, "\U0010ffff", "\ufffe",
       "[V", "V]", "[V]", "[S1]", "[S12]", "\ud800"]  # fmt: skip
PIECES = st.one_of(st.sampled_from(SPECIAL + ODD), st.text(max_size=8))
ANYTHING = st.lists(PIECES, max_size=12).map("".join)


def is_text(prompt: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in prompt)


@settings(max_examples=300)
@given(ANYTHING)
def test_the_structure_stays(prompt: str) -> None:
    """BOS, text and learned tokens only, SEP; each [V] in the prompt is one token."""
    if not is_text(prompt):
        with pytest.raises(ValueError, match="is not valid text"):
            BACKEND.prompt_ids(prompt, None, NAMES)
        return
    for names in ({}, NAMES):
        ids = BACKEND.prompt_ids(prompt, None, names)
        assert ids[0] == TOKENIZER.bos and ids[-1] == TOKENIZER.sep
        special = [index for index in ids[1:-1] if is_special(TOKENIZER, index)]
        assert set(special) <= set(names.values())
        assert len(special) == sum(prompt.count(name) for name in names)
    codes = torch.zeros(4, 4, dtype=torch.int64)
    ids = BACKEND.training_sequence(prompt, codes, NAMES, loss="image_tokens").ids
    assert torch.equal(parse_image(BACKEND, ids), codes)


@settings(max_examples=300)
@given(ANYTHING)
def test_the_sample_command_takes_it_or_says_why_not(prompt: str) -> None:
    try:
        notes = check_words([prompt], ["[V]"])
    except ValueError as error:
        assert not prompt.strip()
        assert str(error).isprintable() and len(str(error)) < 500
    else:
        assert prompt.strip()  # what is no text is for the tokenizer to refuse
        assert bool(notes) == ("[V]" not in prompt) and all(note.isprintable() for note in notes)


@given(ANYTHING)
def test_prompts_of_a_run_are_taken_or_refused(prompt: str) -> None:
    try:
        assert plain_prompts([prompt])[0].text == prompt
    except ValueError as error:
        assert "{}" not in prompt or not is_text(prompt), error


def test_the_longest_prompt_is_taken_and_one_more_is_not(tiny_backend) -> None:
    allowed = tiny_backend.max_tokens
    least = len(encode_prompts(tiny_backend, [""], None)[0])
    fits = "\x01" * (allowed - least)  # one token each
    assert len(encode_prompts(tiny_backend, [fits], None)[0]) == allowed
    with pytest.raises(ValueError, match=rf"has {allowed + 1} tokens"):
        encode_prompts(tiny_backend, [f"{fits}\x01"], None)


def test_odd_prompts_are_drawn(tiny_backend, record_property) -> None:
    from personalar.generation.decoders.plain import PlainDecoder

    identifier = Identifier(tokens=NAMES, rows=torch.zeros(3, 32))
    generator = Generator(backend=tiny_backend, decoder=PlainDecoder(), identifier=identifier, batch=64)
    prompts = [*filter(is_text, ODD), *SPECIAL]
    record_property("inputs", len(prompts))
    assert len(generator.images(prompts, range(len(prompts)))) == len(prompts)


@pytest.mark.parametrize(
    ("knob", "text"),
    [("noun", ""), ("noun", "  "), ("noun", "cat\ndog"), ("noun", "x" * 10_000), ("noun", "\x00"),
     ("noun", "\ud800"), ("description", "\x1b[31m"), ("name", "\u202e"), ("description", "")],
)  # fmt: skip
def test_words_of_a_subject(knob: str, text: str, tmp_path: Path) -> None:
    words = {"name": "rex", "noun": "dog", "description": None} | {knob: text}
    with pytest.raises(ValueError, match=rf"subject\.{knob}") as stopped:
        load_subject(SubjectConfig(kind="folder", path=str(tmp_path), **words))
    assert str(stopped.value).isprintable() and len(str(stopped.value)) < 400


def test_no_prompt_at_all() -> None:
    with pytest.raises(ValueError, match=r"samples\.prompts=\[\] is empty"):
        plain_prompts(compose_config("+subject=cat", "samples.prompts=[]").samples.prompts)
