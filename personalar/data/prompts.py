"""Prompts: the names of learned rows, the wording of training sequences and of validation prompts.

Training follows arXiv 2504.13162: "a photo of [V] <noun>", and for half of the sequences "a photo of [V]
<noun> S_i" with the training photo's own token S_i at the end.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from personalar.core.types import PromptSpec, SampleKind

SUBJECT_TOKEN = "[V]"
_ANIMALS = (
    "bear bird cat chicken cow dog duck elephant fish fox frog goat hamster horse kitten monkey mouse "
    "owl parrot person pig puppy rabbit sheep tiger turtle wolf"
)
LIVE_NOUNS = frozenset(_ANIMALS.split())
"""Nouns of animals, for which accessory prompts make sense."""
UNRELATED = (
    "a photo of a teapot",
    "a red car on the beach",
    "a dog in the snow",
    "a blue vase on top of a wooden floor",
    "a cat in the jungle",
    "a yellow boot with a mountain in the background",
    "a clock with a city in the background",
    "a green backpack on a cobblestone street",
)
"""Things that are not the subject."""


def check_text(text: str, knob: str) -> None:
    """Raise ValueError unless `text`, a value of `knob`, can be written down as UTF-8."""
    for position, sign in enumerate(text):
        if "\ud800" <= sign <= "\udfff":
            raise ValueError(
                f"{knob} holds {text[:60]!r}, whose character {position + 1} (U+{ord(sign):04X}) is half of "
                "a pair and no text: type it again, in UTF-8"
            )


def normalized(prompt: str) -> str:
    """Return `prompt` in Unicode's composed form (NFC), with single blanks and none at its ends.

    Line ends and doubled blanks would be other tokens, and so another picture.
    """
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a text file, one a line, without empty lines and comments (#).

    Raises:
        FileNotFoundError, ValueError: the file is missing, or not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts_file={path} is not a text in UTF-8 ({error.reason})") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"prompts_file={path}: no such file") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def image_token_names(num_images: int) -> tuple[str, ...]:
    """Return "[S1]", "[S2]", ...: one name per training photo."""
    return tuple(f"[S{index + 1}]" for index in range(num_images))


def fill(text: str, phrase: str) -> str:
    """Put `phrase` in the place of "{}", with its article ("a {}", "orange cat": "an orange cat")."""
    if phrase[:1].lower() in "aeiou":
        for article, before_vowel in (("a {}", "an {}"), ("A {}", "An {}")):
            if text.startswith(article):
                text = before_vowel + text[len(article) :]
            text = text.replace(f" {article}", f" {before_vowel}")
    return text.replace("{}", phrase)


def training_prompt(
    template: str, noun: str, *, image_token: str | None = None, class_name: bool = True
) -> str:
    """Return the prompt of one training sequence of the subject."""
    prompt = template.replace("{}", f"{SUBJECT_TOKEN} {noun}" if class_name else SUBJECT_TOKEN)
    return f"{prompt} {image_token}" if image_token else prompt


def sample_prompt(
    spec: PromptSpec,
    *,
    kind: SampleKind,
    noun: str,
    description: str | None,
    learned: bool,
    class_name: bool = True,
) -> str:
    """Return the validation prompt that the model sees.

    Args:
        learned: the model knows [V]; otherwise a subject prompt names the class only.
        class_name: the class stands after [V]; False where it was learned without.
    """
    if kind == "description":
        assert description is not None
        return fill(spec.text, description)
    if kind == "subject" and learned:
        return fill(spec.text, f"{SUBJECT_TOKEN} {noun}" if class_name else SUBJECT_TOKEN)
    return fill(spec.text, noun)


def unrelated_prompts(noun: str) -> tuple[PromptSpec, ...]:
    """Return prompts of other things in other places, without "{}": what the subject must not touch."""
    things = [thing for thing in UNRELATED if noun.split()[-1] not in thing]
    return tuple(PromptSpec(text=text, category="unrelated") for text in things)


def plain_prompts(texts: list[str]) -> tuple[PromptSpec, ...]:
    """Return prompts from the configuration.

    Raises:
        ValueError: the list is empty, or a prompt has no "{}" for the subject or is no text.
    """
    if not texts:
        raise ValueError("samples.prompts=[] holds no prompt: write 'a {} in the snow'")
    for text in texts:
        check_text(text, "samples.prompts")
        if "{}" not in text:
            raise ValueError(f"samples.prompts holds {text!r} without {{}}: write 'a {{}} in the snow'")
    return tuple(PromptSpec(text=normalized(text), category="plain") for text in texts)
