"""The model card (README.md) of a concept or an export: purpose, limits, provenance and hashes.

The YAML header is for the Hugging Face hub; the body is the template templates/card.md.j2. A concept may come
from a stranger, so its values are inserted as plain words and never as markup.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from personalar.concepts.concept import Concept
from personalar.concepts.validation import read_record
from personalar.config.subject_config import STYLE
from personalar.core.files import content_hash, template_environment, write_atomic
from personalar.core.own_files import CARD_FILE, PICTURES, RECORD_FILE
from personalar.core.png import read_png_metadata, sample_files
from personalar.data.prompts import (
    STYLE_TEMPLATE,
    SUBJECT_TOKEN,
    example_prompt,
    subject_names,
    training_prompt,
)

if TYPE_CHECKING:
    from jinja2 import Template

DEFAULT_BASE, OWN_LICENCE = "nano", "apache-2.0"
"""The base that is part of this package, and its licence."""


def plain(value: Any, most: int = 120) -> str:
    """Return `value` without characters of Markdown, HTML or YAML syntax, cut to `most` characters."""
    return re.sub(r"[^\w .,;+()/-]", " ", str(value))[:most].strip() or "unknown"


def origin(concept: Concept) -> tuple[str | None, str]:
    """Return the hub id of the base, or None, and its licence in one line."""
    model = concept.config.get("model", {})
    hub = model.get("hub")
    if hub and re.fullmatch(r"[\w.-]+/[\w.-]+", hub["repo"]):
        return hub["repo"], plain(hub.get("licence"))
    if str(model.get("path")).startswith("package://"):
        return None, OWN_LICENCE
    return None, "that of the base (not recorded in this concept)"


def data_settings(concept: Concept) -> dict[str, Any]:
    """Return the settings model.recipe.data of its run; empty if they are unknown."""
    found: dict[str, Any] = concept.config.get("model", {}).get("recipe", {}).get("data", {})
    return found


def instance_prompt(concept: Concept) -> str:
    """Return the first training prompt, such as "a photo of [V] dog"."""
    data = data_settings(concept)
    noun = concept.subject["noun"]
    usual = STYLE_TEMPLATE if noun == STYLE else "a photo of {}"
    template = (data.get("templates") or [usual])[0]
    return prompt_words(training_prompt(template, noun, class_name=data.get("class_name", True)))


def prompt_words(prompt: str) -> str:
    """Return `prompt` as plain words (see `plain`), but keep the brackets of [V]."""
    parts = (plain(part) if part.strip() else "" for part in prompt.split(SUBJECT_TOKEN))
    return f" {SUBJECT_TOKEN} ".join(parts).strip()


def widget(folder: Path) -> list[dict[str, Any]] | None:
    """Return the hub's `widget` entries, the pictures in `folder` with their prompts; None without any."""
    shown = []
    for path in sorted((folder / PICTURES).glob("*.png")):
        prompt = read_png_metadata(path).get("prompt")
        # Only plain file names become links.
        if prompt is not None and re.fullmatch(r"[\w.-]+", path.name):
            shown.append({"text": prompt_words(prompt), "output": {"url": f"{PICTURES}/{path.name}"}})
    return shown or None


def head(concept: Concept, folder: Path) -> str:
    """Return the YAML header of the card in `folder`, without the lines of dashes around it."""
    repo, licence = origin(concept)
    method = "lora" if concept.lora else "textual-inversion"
    own = licence == OWN_LICENCE
    # Fields that are None are left out.
    return ModelCardData(
        library_name="personalar",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "personalization", "autoregressive", method],
        license=OWN_LICENCE if own else "other",
        license_name=None if own else "of-the-base-model",
        license_link=repo and f"https://huggingface.co/{repo}",
        base_model=repo,
        base_model_relation=repo and "adapter",
        inference=False,
        instance_prompt=instance_prompt(concept),
        widget=widget(folder),
    ).to_yaml()


def base_arguments(concept: Concept, *, exported_checkpoint: bool) -> list[str]:
    """Return the command-line arguments that select the base of the concept; none for the default base."""
    name, path = plain(concept.base["name"]), concept.config.get("model", {}).get("path")
    words = [] if name == DEFAULT_BASE else [f"model={name}"]
    if exported_checkpoint:
        return [*words, "model.path=DIR/checkpoint"]
    foreign = path and not path.startswith("package://")
    return [*words, "model.path=BASE"] if foreign else words


@cache
def card_template() -> Template:
    """Return the template of the card, which is compiled once."""
    folder = Path(__file__).parent / "templates"
    environment = template_environment(folder, escape=False, plain=plain, quote=shlex.quote)
    return environment.get_template("card.md.j2")


def concept_files(folder: Path) -> list[Path]:
    """Return the files of the concept in `folder` and its pictures, without others that lie there."""
    names = [RECORD_FILE, *read_record(folder)["files"]]
    return sorted([*(folder / name for name in names), *sample_files(folder / PICTURES)])


def model_card(
    concept: Concept,
    folder: Path,
    *,
    files: Sequence[Path] = (),
    exported: bool = False,
    checkpoint: str | None = None,
    scores: Mapping[str, float] | None = None,
) -> str:
    """Return the text of the model card.

    Args:
        concept: what the card describes.
        folder: where the card will be, with the pictures that it shows.
        files: those in `folder` that it lists with their hashes.
        exported: `folder` is an export for other programs, not the concept itself.
        checkpoint: description of the exported checkpoint's format; None without a checkpoint.
        scores: means over the run's pictures by title of the measure, such as "CLIP-T" and "memorised"; None
            or empty if nothing was measured.
    """
    repository, licence = origin(concept)
    subject = subject_names(concept.tokens)
    whole = checkpoint is not None
    class_name = data_settings(concept).get("class_name", True)
    return card_template().render(
        head=head(concept, folder),
        concept=concept,
        short=plain(concept.base["fingerprint"])[:12],
        repository=repository,
        licence=licence,
        method=concept.config.get("method", {}).get("name"),
        exported=exported,
        checkpoint=checkpoint,
        scores=scores or {},
        photos=sum(name.startswith("[S") for name in concept.tokens),
        subject_ids=[concept.tokens[name] for name in subject],
        names=list(concept.tokens) if whole or not exported else subject,
        example=prompt_words(example_prompt(concept.subject["noun"], class_name=class_name)),
        base_arguments=base_arguments(concept, exported_checkpoint=whole and not concept.lora),
        files=[(path.relative_to(folder).as_posix(), content_hash(path)) for path in files],
    )


def write_card(concept: Concept, folder: Path, **facts: Any) -> Path:
    """Write the model card to `folder` and return its path; `facts` are arguments of `model_card`."""
    card = model_card(concept, folder, **facts)
    write_atomic(folder / CARD_FILE, card.encode())
    return folder / CARD_FILE


def is_card(path: Path) -> bool:
    """Return True if the file is a card that this package wrote, which may be overwritten."""
    return b"\nlibrary_name: personalar\n" in path.read_bytes()[:1000]
