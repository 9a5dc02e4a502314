"""The concepts of `personalar.sample`: their folders, words in prompts, and strengths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from personalar.concepts.concept_source import concept_folder
from personalar.config.commands import SampleConfig
from personalar.core.files import parse_json
from personalar.data.prompts import SUBJECT_TOKEN, word_of


@dataclass(frozen=True, kw_only=True)
class ChosenConcept:
    """A concept folder that exists, and how it is used; its files are checked when it is loaded."""

    folder: Path
    name: str
    """Name of the subject."""
    word: str
    """Its word in prompts, such as "[cat]"."""
    strength: float
    base: str
    """Fingerprint of the base that it was learned on."""
    digest: str
    """Hash of concept.json, which contains the hashes of all files: 12 hex digits."""


def short_hash(record: bytes) -> str:
    """Return the hash of a concept.json as PNG files contain it: 12 hex digits."""
    return hashlib.sha256(record).hexdigest()[:12]


def choose(config: SampleConfig) -> list[ChosenConcept]:
    """Return the concepts of `config`, in order.

    Raises:
        FileNotFoundError: a folder contains no concept.
        ValueError: two concepts have the same word.
    """
    chosen = []
    names = config.names or [""] * len(config.concepts)
    for where, own, strength in zip(config.concepts, names, config.strengths, strict=True):
        folder = concept_folder(where)
        record = (folder / "concept.json").read_bytes()
        name, word, base = _read(record)
        word, digest = f"[{own}]" if own else word, short_hash(record)
        chosen.append(
            ChosenConcept(folder=folder, name=name, word=word, strength=strength, base=base, digest=digest)
        )
    words = [concept.word for concept in chosen]
    if twice := [word for word in words if words.count(word) > 1]:
        raise ValueError(
            f"{words.count(twice[0])} concepts have the word {twice[0]} in prompts: give each its own with "
            f"names=[{','.join(f'{word[1:-1]}{place}' for place, word in enumerate(words, 1))}]"
        )
    return chosen


def _read(record: bytes) -> tuple[str, str, str]:
    """Return name, word and base of a concept.json; one that is damaged is reported when it is loaded."""
    name, word, base = "", None, ""
    with suppress(ValueError, TypeError, KeyError):
        content = parse_json(record)
        name, word = str(content["subject"]["name"]), content["subject"].get("word")
        base = str(content["base"]["fingerprint"])
    return name, str(word or word_of(name)), base


def words_of(chosen: Sequence[ChosenConcept]) -> list[str]:
    """Return the words that name the subjects in prompts; [V] is one of them if there is one concept."""
    words = [concept.word for concept in chosen]
    return [SUBJECT_TOKEN, *words] if len(words) == 1 else words


def facts_of(chosen: Sequence[ChosenConcept], config: SampleConfig) -> dict[str, str]:
    """Return the PNG text chunks with all concepts; their words and strengths unless they are the default."""
    facts = {"concept": " ".join(concept.digest for concept in chosen)}
    if len(chosen) > 1 or config.names:
        facts["words"] = " ".join(concept.word for concept in chosen)
    if any(concept.strength != 1 for concept in chosen):
        facts["strength"] = " ".join(str(concept.strength) for concept in chosen)
    return facts


def check_unambiguous(prompts: Iterable[str | None], words: Sequence[str]) -> None:
    """Raise ValueError if a prompt or negative prompt has [V], which could be several concepts."""
    for prompt in prompts:
        if SUBJECT_TOKEN in (prompt or "") and SUBJECT_TOKEN not in words:
            raise ValueError(
                f"{prompt!r:.80} contains {SUBJECT_TOKEN}, which could be any of the concepts: write "
                f"{' or '.join(words)}"
            )


def check_words(prompts: list[str], words: Sequence[str]) -> list[str]:
    """Return a note for every prompt that contains none of `words`, the words of the concepts.

    Raises:
        ValueError: there is no prompt, one is empty, or [V] could be several concepts.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(
            f"prompts={prompts}: give at least one prompt and no empty one, such as "
            f"'a photo of {SUBJECT_TOKEN} cat'"
        )
    check_unambiguous(prompts, words)
    notes, first = [], words[0]
    for prompt in prompts:
        if not any(word in prompt for word in words):
            notes.append(
                f"note: {prompt!r} does not name the subject; write {first} before the noun, or for a style "
                f"'in the style of {first}'"
            )
    return notes
