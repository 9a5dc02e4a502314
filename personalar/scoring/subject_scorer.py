"""Score samples of one subject: likeness (DINO, CLIP-I), prompt following (CLIP-T, zero-shot accuracy).

One line for each image and scorer, in the form that `scores.jsonl` keeps::

    {"stage", "kind", "prompt", "template", "seed", "category", "image",
     "scorer": "dino" | "clip_i" | "clip_t", "value"}

"template" is the prompt with "{}" for the subject, the same at every stage; "image" is relative to the run
folder. The "clip_t" line also holds "clip_text", the very text that CLIP saw, and, where the prompt names a
context or an accessory, "context_top1" or "accessory_top1": did zero-shot CLIP pick the right one among all?
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from personalar.scoring.base import ImageScorer, ImageTextScorer, mean_similarity
from personalar.types import PromptSpec, Sample, Subject

_IDENTIFIER = re.compile(r"\s*\[(?:V|S\d+)\]")


def plain_text(prompt: str) -> str:
    """Return `prompt` without the identifier: CLIP has never seen "[V]"."""
    return _IDENTIFIER.sub("", prompt).strip()


class SubjectScorer:
    """Judge samples against the references of one subject, whose features are computed once.

    Args:
        prompts: all prompts of the evaluation; they are the alternatives of the zero-shot accuracies.
            Empty: the prompts of the samples in a call are.
    """

    def __init__(
        self,
        clip: ImageTextScorer,
        dino: ImageScorer,
        subject: Subject,
        *,
        prompts: Sequence[PromptSpec] = (),
    ) -> None:
        self.clip = clip
        self.dino = dino
        self.subject = subject
        self.prompts = tuple(prompts)
        self.dino_references = dino.features(subject.images)  # (R, D)
        self.clip_references = clip.image_features(subject.images)  # (R, D')
        self._known_texts: dict[tuple[str, ...], Tensor] = {}

    def describe(self) -> dict[str, str]:
        """Return which checkpoints judge."""
        return {"clip": self.clip.name, "dino": self.dino.name}

    def bounds(self) -> dict[str, dict[str, float] | None]:
        """Return the likeness of other things of the class (floor) and of unseen views (ceiling).

        Photographs have neither, so both are None.
        """
        return {"floor": self._likeness(self.subject.others), "ceiling": self._likeness(self.subject.holdout)}

    def score(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Return three lines for each sample.

        They do not depend on the other samples in the call, provided that `prompts` was given.
        """
        if not samples:
            return []
        images = [sample.image for sample in samples]
        clip_images = self.clip.image_features(images)  # (B, D')
        texts = [plain_text(sample.prompt) for sample in samples]
        values = {
            "dino": mean_similarity(self.dino.features(images), self.dino_references),
            "clip_i": mean_similarity(clip_images, self.clip_references),
            "clip_t": (clip_images * self.clip.text_features(texts)).sum(dim=1),
        }
        lines = [
            {**_identity(sample), "scorer": scorer, "value": round(float(values[scorer][index]), 6)}
            for index, sample in enumerate(samples)
            for scorer in ("dino", "clip_i", "clip_t")
        ]
        specs = self.prompts or tuple(sample.spec for sample in samples)
        for index, line in enumerate(lines[2::3]):
            line["clip_text"] = texts[index]
            line.update(self._obedience(samples[index].spec, clip_images[index], specs))
        return lines

    def _likeness(self, images: Sequence) -> dict[str, float] | None:
        if not images:
            return None
        return {
            "dino": float(mean_similarity(self.dino.features(images), self.dino_references).mean()),
            "clip_i": float(mean_similarity(self.clip.image_features(images), self.clip_references).mean()),
            "images": len(images),
        }

    def _obedience(self, asked: PromptSpec, image: Tensor, specs: Sequence[PromptSpec]) -> dict[str, bool]:
        """Return the zero-shot questions that a prompt raises, and if the picture (D',) answers rightly."""
        answers = {}
        if asked.category == "recontext" and asked.context is not None:
            rivals = [spec for spec in specs if spec.category == "recontext" and spec.context is not None]
            answers["context_top1"] = self._closest(image, rivals, "context") == asked.context
        if asked.category == "accessory" and asked.accessory is not None:
            # Plain prompts compete too: a picture without any accessory must not be right by chance.
            rivals = [spec for spec in specs if spec.accessory is not None or spec.category == "plain"]
            found = self._closest(image, rivals, "accessory", "colour")
            answers["accessory_top1"] = found == (asked.accessory, asked.colour)
        return answers

    def _closest(self, image: Tensor, specs: Iterable[PromptSpec], *fields: str) -> Any:
        """Return the fields of the spec whose text is nearest to the picture; one text for each answer."""
        texts: dict[Any, str] = {}
        for spec in specs:
            answer = tuple(getattr(spec, field) for field in fields)
            texts.setdefault(answer, spec.text.replace("{}", self.subject.noun))
        features = self._text_features(tuple(texts.values()))
        best = list(texts)[int(torch.argmax(features @ image))]
        return best if len(fields) > 1 else best[0]

    def _text_features(self, texts: tuple[str, ...]) -> Tensor:
        """Return (B, D'), remembered: every sample asks the same question."""
        if texts not in self._known_texts:
            self._known_texts[texts] = self.clip.text_features(texts)
        return self._known_texts[texts]


def _identity(sample: Sample) -> dict[str, Any]:
    """Return the fields that say which image a line is about."""
    return {
        "stage": sample.stage,
        "kind": sample.kind,
        "prompt": sample.prompt,
        "template": sample.spec.text,
        "seed": sample.seed,
        "category": sample.spec.category,
        "image": f"images/{sample.stage}/{sample.path.name}" if sample.path else None,
    }
