"""Prompts: names of the learned tokens, and the wording of training and validation prompts.

Training follows arXiv 2504.13162: "a photo of [V] <noun>", and for half of the sequences "a photo of [V]
<noun> S_i", where S_i is the token of that training photo. A style has no class: its prompts
contain "in the style of [V]", and those of the base leave this phrase out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from personalar.config.subject_config import IN_STYLE, STYLE
from personalar.core.files import plain_name
from personalar.core.types import PromptSpec, SampleKind

SUBJECT_TOKEN = "[V]"
TAKEN = re.compile(r"[A-Z]\d{0,4}")
"""Names that a concept cannot have: those of learned tokens, such as [V] and [S1], without brackets."""
_ANIMALS = (
    "bear bird bunny camel cat chicken corgi cow deer dog donkey duck elephant fish fox frog giraffe goat "
    "goose hamster hedgehog hen horse kangaroo kitten koala leopard lion lizard llama monkey mouse otter owl "
    "panda parrot penguin pig poodle pony puppy rabbit raccoon rat retriever rooster sheep sloth squirrel "
    "terrier tiger tortoise turtle wolf zebra"
)
_PEOPLE = "actor actress adult baby boy child daughter face girl human kid lady man person son woman"
LIVE_NOUNS = frozenset(f"{_ANIMALS} {_PEOPLE}".split())
"""Last words of live classes, which get prompts with accessories ("wearing a red hat")."""
LIFELESS = frozenset({"gummy", "hot", "plush", "rubber", "stuffed", "teddy", "toy", "wooden"})
"""Words of classes that are not live: "teddy bear", "rubber duck"."""
STYLE_TEMPLATE = f"a painting {IN_STYLE}"
"""A training prompt of a style."""
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
"""Prompts of other things, to measure how much the training changed the rest of the model."""


def normalized(prompt: str) -> str:
    """Return `prompt` in Unicode NFC with single spaces and without leading or trailing whitespace.

    Otherwise prompts that look the same could be tokenized differently and give different images.
    """
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def image_token_names(num_images: int) -> tuple[str, ...]:
    """Return "[S1]", "[S2]", ...: one name per training photo."""
    return tuple(f"[S{index + 1}]" for index in range(num_images))


def word_of(name: str) -> str:
    """Return the word for a concept of this name in prompts, such as "[cat]"."""
    plain = plain_name(name, longest=60)
    return f"[my_{plain}]" if TAKEN.fullmatch(plain) else f"[{plain}]"


def row_names(word: str, count: int) -> tuple[str, ...]:
    """Return the names of the tokens that `word` stands for: "[V]", "[V:2]", "[V:3]", ..."""
    return (word, *(f"{word[:-1]}:{number}]" for number in range(2, count + 1)))


def subject_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of `names` that [V] stands for, in order."""
    return tuple(name for name in names if name == SUBJECT_TOKEN or name.startswith("[V:"))


def spell(prompt: str, words: Mapping[str, Sequence[str]]) -> str:
    """Return `prompt` with every word of `words` replaced by the names of its tokens, without spaces."""
    if not words:
        return prompt
    pattern = "|".join(map(re.escape, words))
    return re.sub(pattern, lambda match: "".join(words[match[0]]), prompt)


def fill(text: str, phrase: str) -> str:
    """Replace "{}" by `phrase` and adapt the article: "a {}" and "orange cat" give "an orange cat"."""
    # A simple rule on the first letter; the words of the nano world have no exceptions.
    if phrase[:1].lower() in "aeiou":
        for article, before_vowel in (("a {}", "an {}"), ("A {}", "An {}")):
            if text.startswith(article):
                text = before_vowel + text[len(article) :]
            text = text.replace(f" {article}", f" {before_vowel}")
    return text.replace("{}", phrase)


def is_live(noun: str) -> bool:
    """Return whether a class such as "dog" or "Corgi dog" is an animal or a person, by its last word."""
    words = noun.lower().split()
    return words[-1] in LIVE_NOUNS and LIFELESS.isdisjoint(words)


def subject_phrase(noun: str, *, class_name: bool = True) -> str:
    """Return the words for a learned subject in prompts: "[V] dog", or "[V]" (a style, or no class name)."""
    return f"{SUBJECT_TOKEN} {noun}" if class_name and noun != STYLE else SUBJECT_TOKEN


def class_prompt(text: str, noun: str) -> str:
    """Return a prompt for the base: with the class for "{}", or without the phrase that names a style."""
    return without_style(text, "{}") if noun == STYLE else fill(text, noun)


def without_style(prompt: str, word: str) -> str:
    """Return `prompt` without the phrase "in the style of" `word`."""
    phrase = re.escape(IN_STYLE.replace("{}", word))
    return re.sub(rf",?\s*{phrase}", "", prompt).strip(" ,")


def example_prompt(noun: str, *, class_name: bool = True) -> str:
    """Return a prompt to try a concept of this class with, or a style; see `subject_phrase`."""
    template = f"a cat in the snow {IN_STYLE}" if noun == STYLE else "a photo of {} in the snow"
    return template.replace("{}", subject_phrase(noun, class_name=class_name))


def training_prompt(
    template: str, noun: str, *, image_token: str | None = None, class_name: bool = True
) -> str:
    """Return the prompt of one training sequence of the subject.

    Args:
        template: a prompt with "{}" for the subject, such as "a photo of {}".
        noun: the class, such as "dog".
        image_token: the photo's own token "[S1]", ..., appended to the prompt; None leaves it out.
        class_name: whether the class follows [V].
    """
    prompt = template.replace("{}", subject_phrase(noun, class_name=class_name))
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
    """Return the text of a validation prompt.

    Args:
        spec: the prompt, with "{}" for the subject.
        kind: "subject" uses [V], "description" the subject's description, other kinds the class alone.
        noun: the class, such as "dog".
        description: words that describe the subject; required for kind "description".
        learned: whether [V] has been trained; before that, subject prompts name the class alone.
        class_name: whether the class follows [V]; must equal the setting of the training.
    """
    if kind == "description":
        assert description is not None
        return fill(spec.text, description)
    # Before the first stage [V] has no meaning, so the base gets the class alone.
    if kind == "subject" and learned:
        return fill(spec.text, subject_phrase(noun, class_name=class_name))
    return class_prompt(spec.text, noun)


def prior_prompt(noun: str) -> PromptSpec:
    """Return the class prompt of the samples of kind "prior"."""
    return PromptSpec(text=STYLE_TEMPLATE if noun == STYLE else "a photo of a {}", category="prior")


def unrelated_prompts(noun: str) -> tuple[PromptSpec, ...]:
    """Return prompts that do not mention the class `noun`, to check that training left them unchanged."""
    # The last word of a class such as "duck toy" is its head noun.
    things = [thing for thing in UNRELATED if noun.lower().split()[-1] not in thing]
    return tuple(PromptSpec(text=text, category="unrelated") for text in things)


def plain_prompts(texts: list[str]) -> tuple[PromptSpec, ...]:
    """Return the prompts of `samples.prompts`.

    Raises:
        ValueError: the list is empty, or a prompt has no "{}" for the subject.
    """
    if not texts:
        raise ValueError("samples.prompts=[] is empty: give a prompt such as 'a {} in the snow'")
    for text in texts:
        if "{}" not in text:
            raise ValueError(
                f"samples.prompts: {text!r} has no {{}} for the subject: write 'a {{}} in the snow'"
            )
    return tuple(
        PromptSpec(text=normalized(text), category="style" if IN_STYLE in text else "plain") for text in texts
    )
