"""The README.md beside a concept: what it is for, what it is not for, what it was made of, and its hashes.

Its head is what the Hugging Face hub reads. Everything comes from the concept itself; a stranger's facts are
quoted as values and never as markup.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from personalar.concepts.concept import Concept
from personalar.core.files import write_atomic
from personalar.core.png import read_png_metadata
from personalar.data.prompts import SUBJECT_TOKEN, training_prompt

CARD_FILE = "README.md"
PICTURES = "pictures"
"""Folder of pictures that the card's head shows: PNG files that tell their prompt."""
PLACES = ("in the snow", "on the beach")
"""Of the prompts that the head suggests where there are no pictures."""
DEFAULT_BASE = "nano"
"""What commands take without `model=`."""
FOREIGN_BASE = " model.path=BASE"
"""What commands need for a base that lay in a folder."""
OWN_LICENCE = "apache-2.0"
"""Of the base that comes with this program."""
BODY = """\
# {subject}, learned by personalar

What `[V]` means to **{base}**: {kind}, learned from {photos} photos of one {noun}. {needs}

```bash
{commands}
```

## Intended use

Pictures of this one subject in other places, poses and styles, by people who may use its likeness: for play,
for research on personalization, for drafts that are marked as generated.

## Out of scope

- People without their consent, children that are not yours, and pictures that pass for photographs.
- Works, brands and designs whose owners have not agreed.
- Anything that the base's licence rules out: {licence}
- Evidence, identification, or any use in which a wrong picture does harm: likeness is approximate.

It has its base's prejudices and gaps; personalization neither finds nor removes them. There is no watermark:
pictures carry prompt, seed, base and concept in their PNG metadata, which are easily stripped.

## Provenance

{facts}

## Files

{files}
"""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a card says of the files beside it."""

    kind: str
    """What they are."""
    needs: str
    """What else must be there, and what they do not hold."""
    commands: tuple[str, ...]
    """How pictures are made with them; DIR is the folder."""
    changed: str
    """How many tensors of the transformer were trained, and where they are."""
    names: tuple[str, ...]
    """Whose rows there are."""


def plain(value: Any, most: int = 120) -> str:
    """Return `value` as words that no markup can hide in."""
    return re.sub(r"[^\w .,;+()/-]", " ", str(value))[:most].strip() or "unknown"


def origin(concept: Concept) -> tuple[str | None, str]:
    """Return (hub id of the base or None, its licence in one line)."""
    model = concept.config.get("model")
    model = model if isinstance(model, dict) else {}
    hub = model.get("hub")
    if isinstance(hub, dict) and re.fullmatch(r"[\w.-]+/[\w.-]+", str(hub.get("repo"))):
        return str(hub["repo"]), plain(hub.get("licence"))
    if str(model.get("path")).startswith("package://"):
        return None, OWN_LICENCE
    return None, "that of the base, which this concept does not know"


def instance_prompt(concept: Concept) -> str:
    """Return a prompt that the subject was learned with: the first template, with or without its class."""
    data = concept.config.get("model")
    for name in ("recipe", "data"):
        data = data.get(name) if isinstance(data, dict) else None
    told = data if isinstance(data, dict) else {}
    templates = told.get("templates")
    template = str(templates[0]) if isinstance(templates, list) and templates else "a photo of {}"
    with_class = bool(told.get("class_name", True))
    return prompt_words(training_prompt(template, str(concept.subject["noun"]), class_name=with_class))


def prompt_words(prompt: str) -> str:
    """Return `prompt` as words that no markup can hide in, [V] among them."""
    parts = (plain(part) if part.strip() else "" for part in prompt.split(SUBJECT_TOKEN))
    return f" {SUBJECT_TOKEN} ".join(parts).strip()


def widget(concept: Concept, folder: Path) -> list[dict[str, Any]]:
    """Return the prompts that a hub shows, with the pictures that lie in `folder` where there are any."""
    shown = []
    for path in sorted((folder / PICTURES).glob("*.png")):
        prompt = read_png_metadata(path).get("prompt")
        if prompt is not None and re.fullmatch(r"[\w.-]+", path.name):
            shown.append({"text": prompt_words(prompt), "output": {"url": f"{PICTURES}/{path.name}"}})
    return shown or [{"text": f"{instance_prompt(concept)} {place}"} for place in PLACES]


def head(concept: Concept, folder: Path) -> str:
    """Return the YAML between the two lines of dashes; `folder` is where the card will lie."""
    repo, licence = origin(concept)
    method = "lora" if concept.lora else "textual-inversion"
    values: dict[str, Any] = {
        "library_name": "personalar",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "personalization", "autoregressive", method],
        "inference": False,
        "license": licence if licence == OWN_LICENCE else "other",
    }
    if licence != OWN_LICENCE:
        values |= {"license_name": "of-the-base-model"}
    if repo is not None:
        values |= {
            "license_link": f"https://huggingface.co/{repo}",
            "base_model": repo,
            "base_model_relation": "adapter",
        }
    values |= {"instance_prompt": instance_prompt(concept), "widget": widget(concept, folder)}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def facts(concept: Concept, told: Content) -> str:
    """Return where it comes from, one line each."""
    config = concept.config
    method = config.get("method")
    known: Mapping[str, Any] = {
        "base": concept.base["name"],
        "base fingerprint (sha256)": concept.base["fingerprint"],
        "base repository": origin(concept)[0] or "none; it came from a folder or with the program",
        "subject": concept.subject["name"],
        "fingerprint of the photos": concept.subject["fingerprint"],
        "learned up to stage": concept.stage,
        "method": method.get("name") if isinstance(method, dict) else None,
        "seed": config.get("seed"),
        "changed tensors": told.changed,
    }
    lines = [f"- {name}: {plain(value)}" for name, value in known.items() if value is not None]
    return "\n".join([*lines, f"- learned names: `{', '.join(told.names)}`"])


def base_words(concept: Concept) -> str:
    """Return the arguments that choose the base the concept was learned on; "" for the default one."""
    model = concept.config.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    name = plain(concept.base["name"])
    words = "" if name == DEFAULT_BASE else " " + shlex.quote(f"model={name}")
    return words + (FOREIGN_BASE if path and not str(path).startswith("package://") else "")


def sample_command(concept: Concept, folder: str, base: str) -> str:
    """Return the command that draws with the concept in `folder` on the base that the words `base` choose."""
    prompt = f"a photo of [V] {plain(concept.subject['noun'])} in the snow"
    return f"python -m personalar.sample concept={folder} 'prompts=[\"{prompt}\"]'{base}"


def content(concept: Concept) -> Content:
    """Return what the folder of a concept holds."""
    kind = "rows of the embedding table"
    kind += " and a LoRA adapter" if concept.lora else " and changed weights" if concept.weights else ""
    return Content(
        kind=kind,
        needs=f"It needs that very base\n(fingerprint `{short(concept)}`) and does nothing without it.",
        commands=(sample_command(concept, "DIR", base_words(concept)),),
        changed=str(len(concept.weights)),
        names=tuple(concept.tokens),
    )


def short(concept: Concept) -> str:
    """Return the beginning of the base's fingerprint."""
    return plain(concept.base["fingerprint"])[:12]


def model_card(concept: Concept, folder: Path, told: Content | None = None) -> str:
    """Return the card of `concept`, with a hash for every file that lies in `folder`.

    Args:
        told: what the folder holds; by default the concept.
    """
    files = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and path.name != CARD_FILE and not path.name.startswith(".")
    )  # fmt: skip
    hashes = [f"- `{path.relative_to(folder).as_posix()}` sha256 `{digest(path)}`" for path in files]
    told = told or content(concept)
    body = BODY.format(
        subject=plain(concept.subject["name"]),
        base=plain(concept.base["name"]),
        kind=told.kind,
        photos=len(concept.tokens) - 1,
        noun=plain(concept.subject["noun"]),
        needs=told.needs,
        commands="\n".join(told.commands),
        licence=origin(concept)[1],
        facts=facts(concept, told),
        files="\n".join(hashes),
    )
    return f"---\n{head(concept, folder)}---\n\n{body}"


def digest(path: Path) -> str:
    """Return the sha256 of a file, read in parts: a checkpoint's shards are larger than memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_card(concept: Concept, folder: Path) -> Path:
    """Write the card into `folder`, beside the files it tells of; return its path."""
    path = folder / CARD_FILE
    write_atomic(path, model_card(concept, folder).encode())
    return path


def is_card(path: Path) -> bool:
    """Tell whether the file was written here, and not by a person about something else."""
    return b"\nlibrary_name: personalar\n" in path.read_bytes()[:1000]
