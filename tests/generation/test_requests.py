"""Words that a base was not trained on are named, by what its folder says and not by which base it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest_upstream import with_layout

from personalar.config.compose import package_path
from personalar.config.model_config import ProtocolConfig
from personalar.data.dreambench import dreambench_prompts
from personalar.data.prompts import UNRELATED, fill
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.generation.requests import check_prompts, encode_prompts, words_note
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.model_files import read_layout
from personalar.nano.world.prompt_set import bench_prompts
from personalar.nano.world.scene import CLASSES

NANO = read_layout(package_path("package://nano") / "protocol.json")


def test_the_benchmarks_own_prompts_are_known() -> None:
    prompts = [fill(spec.text, noun) for noun in CLASSES for spec in bench_prompts(noun)]
    assert words_note(NANO, [*prompts, *UNRELATED]) is None


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("an astronaut [V] riding a bicycle on the moon", "astronaut, riding, bicycle, moon"),
        ("a photo of [V] duck toy, wearing a red hat", None),
        ("a two-tone [V] cat [S1] in the Snow; it's a dog's", "Snow, it's, dog's"),
        ("雪の中の [V] 3", "雪の中の, 3"),
        ("\x00 {} %s", "s"),
    ],
)
def test_unknown_words(prompt: str, words: str | None) -> None:
    note = words_note(NANO, [prompt, prompt], ["[V]", "[S1]"])
    assert note == (words and f"this base was not trained on: {words}")


def test_a_base_that_lists_no_words_says_nothing() -> None:
    assert words_note(ProtocolConfig(), ["an astronaut"]) is None


def test_the_note_comes_with_the_check_once(tiny_backend, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tiny_backend, "known_words", NANO.known_words)
    model = SimpleNamespace(backend=tiny_backend, identifier=None)
    check_prompts(model, ["a cat on the moon"])
    assert capsys.readouterr().out == "note: this base was not trained on: moon\n"
    check_prompts(model, ["a cat on the moon"], words=False)
    check_prompts(model, ["a cat on the beach"])
    assert capsys.readouterr().out == ""


def declaring(backend: ChameleonBackend, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backend` declare so many positions."""
    config = dataclasses.replace(backend.transformer.config, max_position_embeddings=positions)
    monkeypatch.setattr(backend.transformer, "config", config)


def test_at_1024_px_a_prompt_over_64_tokens_is_noted_and_not_refused() -> None:
    """A square picture has 4164 tokens, more than the 4096 positions that configs of this family declare."""
    backend = with_layout(ProtocolConfig(resolution=1024))
    least = len(encode_prompts(backend, [""], None)[0])
    short, long = "\x01" * (64 - least), "\x01" * (65 - least)
    said: list[str] = []
    model = SimpleNamespace(backend=backend, identifier=None)
    check_prompts(model, [short], say=said.append)
    assert said == []
    check_prompts(model, [short, long], say=said.append)
    assert (
        len(said) == 1
        and "has 65 tokens including its template, and the picture 4164: together more than the 4096"
        in said[0]
    )
    assert said[0].endswith("shorten the prompt to 64 tokens")
    assert [len(ids) for ids in encode_prompts(backend, [long * 9], None)] > [65]
    with pytest.raises(ValueError, match=r"has 4097 tokens .*, but this base reads at most 4096"):
        encode_prompts(backend, ["\x01" * (4097 - least)], None)


def test_a_picture_beyond_the_declared_positions_is_drawn_alike(tiny_backend, monkeypatch, capsys) -> None:
    prompt = "\x01" * 90
    generator = Generator(backend=tiny_backend, decoder=PlainDecoder())
    within = generator.codes([prompt], [3])
    length = len(encode_prompts(tiny_backend, [prompt], None)[0])
    declaring(tiny_backend, length + 3, monkeypatch)
    check_prompts(generator, [prompt, "a cat", f"{prompt}\x01"])
    said = capsys.readouterr().out
    safe = length + 3 - len(tiny_backend.grammar(4, 4))
    assert f"has {length + 1} tokens" in said and f"(2 prompts are longer than {safe} tokens)" in said
    assert torch.equal(generator.codes([prompt], [3]), within)


def test_the_guide_lists_what_nano_knows() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
    section = text.split("## Words of the small base")[1].split("\n## ")[0].replace("\n", " ")
    assert [word for word in NANO.known_words if word not in section] == []


def test_a_long_list_is_cut() -> None:
    note = words_note(NANO, [fill(spec.text, "cat") for spec in dreambench_prompts(live=True)])
    assert note is not None and len(note) < 200 and note.endswith(" more")
