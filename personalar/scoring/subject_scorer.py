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

from personalar.core.types import PromptSpec, Sample, Subject
from personalar.scoring.base import ImageScorer, ImageTextScorer, mean_similarity, similarity_between

_IMAGE_TOKEN = re.compile(r"\s*\[S\d+\]")


def class_text(prompt: str, noun: str) -> str:
    """Return `prompt` with the class in the place of "[V] cat" or "[V]": CLIP has never seen "[V]"."""
    named = prompt.replace(f"[V] {noun}", noun).replace("[V]", noun)
    return _IMAGE_TOKEN.sub("", named).strip()


class SubjectScorer:
    """Judge samples against the references of one subject, whose features are computed once.

    Args:
        prompts: all prompts of the evaluation; they are the alternatives of the zero-shot accuracies.
            Empty: the prompts of the samples in a call are.
        text: what CLIP-T reads: "class" (the class for "[V] cat") or "prompt" (the very words).
    """

    def __init__(
        self,
        clip: ImageTextScorer,
        dino: ImageScorer,
        subject: Subject,
        *,
        prompts: Sequence[PromptSpec] = (),
        text: str = "class",
    ) -> None:
        self.clip = clip
        self.dino = dino
        self.subject = subject
        self.prompts = tuple(prompts)
        self.text = text
        self.dino_references = dino.features(subject.images)  # (R, D)
        self.clip_references = clip.image_features(subject.images)  # (R, D')
        self._known_texts: dict[tuple[str, ...], Tensor] = {}

    def describe(self) -> dict[str, str]:
        """Return which checkpoints judge, how pictures are prepared and what CLIP-T reads."""
        return {
            "clip": self.clip.name,
            "dino": self.dino.name,
            "clip_preprocessing": self.clip.preprocessing,
            "dino_preprocessing": self.dino.preprocessing,
            "clip_text": self.text,
        }

    def bounds(self) -> dict[str, dict[str, float] | None]:
        """Return the likeness of other things of the class (floor), of unseen views (ceiling), of the photos.

        Photographs have neither floor nor ceiling (None). "photos": the photos among each other, each with
        all the others; "dino_max" is their closest pair. A single photo has none.
        """
        return {
            "floor": self._likeness(self.subject.others),
            "ceiling": self._likeness(self.subject.holdout),
            "photos": self._photos(),
        }

    def score(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Return three lines for each sample.

        They do not depend on the other samples in the call, provided that `prompts` was given.
        """
        if not samples:
            return []
        images = [sample.image for sample in samples]
        clip_images = self.clip.image_features(images)  # (B, D')
        dino_images = self.dino.features(images)  # (B, D)
        texts = [
            class_text(sample.prompt, self.subject.noun) if self.text == "class" else sample.prompt
            for sample in samples
        ]
        values = {
            "dino": mean_similarity(dino_images, self.dino_references),
            "clip_i": mean_similarity(clip_images, self.clip_references),
            "clip_t": (clip_images * self.clip.text_features(texts)).sum(dim=1),
        }
        lines = [
            {**_identity(sample), "scorer": scorer, "value": round(float(values[scorer][index]), 6)}
            for index, sample in enumerate(samples)
            for scorer in ("dino", "clip_i", "clip_t")
        ]
        nearest, which = (dino_images @ self.dino_references.T).max(dim=1)
        for index, line in enumerate(lines[::3]):
            line["nearest"], line["nearest_reference"] = round(float(nearest[index]), 6), int(which[index])
        specs = self.prompts or tuple(sample.spec for sample in samples)
        for index, line in enumerate(lines[2::3]):
            line["clip_text"] = texts[index]
            line.update(self._obedience(samples[index].spec, clip_images[index], specs))
        return lines

    def side_effects(self, samples: Sequence[Sample], base: Sequence[Sample]) -> list[dict[str, Any]]:
        """Return what pictures say about each other, where there are such pictures.

        "diversity": of each "prior" sample, the mean DINO distance (1 - cosine) to the others of its prompt.
        "drift": of each "unrelated" sample, the CLIP distance to the base's picture of that prompt and seed.

        Args:
            base: the base's samples; empty where `samples` are them.
        """
        lines = []
        priors = [sample for sample in samples if sample.kind == "prior"]
        if len(priors) > 1:
            distances = 1 - similarity_between(self.dino.features([sample.image for sample in priors]))
            lines += [_line(*pair, "diversity") for pair in zip(priors, distances.tolist(), strict=True)]
        before = {(s.prompt, s.seed): s.image for s in base if s.kind == "unrelated"}
        others = [s for s in samples if s.kind == "unrelated" and (s.prompt, s.seed) in before]
        if others:
            now = self.clip.image_features([sample.image for sample in others])
            then = self.clip.image_features([before[sample.prompt, sample.seed] for sample in others])
            distances = 1 - (now * then).sum(dim=1)
            lines += [_line(*pair, "drift") for pair in zip(others, distances.tolist(), strict=True)]
        return lines

    def _photos(self) -> dict[str, float] | None:
        if len(self.subject.images) < 2:
            return None
        pairs = self.dino_references @ self.dino_references.T
        pairs.fill_diagonal_(-1)
        return {
            "dino": float(similarity_between(self.dino_references).mean()),
            "clip_i": float(similarity_between(self.clip_references).mean()),
            "dino_max": float(pairs.max()),
            "images": len(self.subject.images),
        }

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


def _line(sample: Sample, value: float, scorer: str) -> dict[str, Any]:
    return {**_identity(sample), "scorer": scorer, "value": round(value, 6)}


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
