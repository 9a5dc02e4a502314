"""The judges of this package: likeness (DINO, CLIP-I), prompt following (CLIP-T, zero-shot), side effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from personalar.config.scorer_config import ScorerConfig
from personalar.core.measures import MEASURES
from personalar.core.types import PromptSpec, Sample, Subject
from personalar.scoring.base import ImageScorer, ImageTextScorer, Value, mean_similarity, similarity_between


def load_pair(config: ScorerConfig, *, device: str = "cpu") -> tuple[ImageTextScorer, ImageScorer]:
    """Return CLIP and DINO; see `checkpoints.resolve_folder` for what a path may be."""
    from personalar.scoring.clip import ClipScorer
    from personalar.scoring.dino import DinoScorer

    dino = DinoScorer(config.dino or "", device=device, preprocess=config.dino_preprocess)
    return ClipScorer(config.clip or "", device=device), dino


def names_of(clip: ImageTextScorer, dino: ImageScorer) -> dict[str, str]:
    """Return checkpoints and preprocessing, as `run.json` records them."""
    return {
        "clip": clip.name,
        "dino": dino.name,
        "clip_preprocessing": clip.preprocessing,
        "dino_preprocessing": dino.preprocessing,
    }


class SubjectScorer:
    """Judge samples against the references of one subject, whose features are computed once.

    The line of "clip_t" also holds "clip_text", the very text that CLIP saw. Where the prompt names a context
    or an accessory, it holds "context_top1" or "accessory_top1": zero-shot CLIP picked the right one of all.

    Args:
        prompts: all prompts of the evaluation; they are the alternatives of the zero-shot accuracies.
            Empty: the prompts of the samples in a call are.
        text: what CLIP-T reads: "class" (the class for "[V] cat") or "prompt" (the very words).
    """

    batch = 64

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
        self.names = {**names_of(clip, dino), "clip_text": text}
        names = ("dino", "clip_i", "clip_t", "context_accuracy", "accessory_accuracy")
        measures = MEASURES | {"clip_t": replace(MEASURES["clip_t"], reads=text)}
        self.measures = [measures[name] for name in names]
        self.dino_references = dino.features(subject.images)  # (R, D)
        self.clip_references = clip.image_features(subject.images)  # (R, D')

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

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the values of each sample.

        They do not depend on the other samples in the call, provided that `prompts` was given.
        """
        images, texts = [sample.image for sample in samples], [sample.prompt for sample in samples]
        clip_images = self.clip.image_features(images)  # (B, D')
        dino_images = self.dino.features(images)  # (B, D)
        likeness = mean_similarity(dino_images, self.dino_references).tolist()
        following = (clip_images * self.clip.text_features(texts)).sum(dim=1).tolist()
        nearest = (dino_images @ self.dino_references.T).max(dim=1)
        specs = self.prompts or tuple(sample.spec for sample in samples)
        return {
            "dino": [
                {"value": value, "nearest": round(near, 6), "nearest_reference": which}
                for value, near, which in zip(
                    likeness, nearest.values.tolist(), nearest.indices.tolist(), strict=True
                )
            ],
            "clip_i": mean_similarity(clip_images, self.clip_references).tolist(),
            "clip_t": [
                {"value": value, "clip_text": text, **self._obedience(sample.spec, image, specs)}
                for value, text, sample, image in zip(following, texts, samples, clip_images, strict=True)
            ],
        }

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
        features = self.clip.text_features(list(texts.values()))  # (answers, D')
        best = list(texts)[int(torch.argmax(features @ image))]
        return best if len(fields) > 1 else best[0]


class Diversity:
    """How far the "prior" samples lie apart: of each, the mean DINO distance (1 - cosine) to the others."""

    measures = (MEASURES["diversity"],)

    def __init__(self, dino: ImageScorer) -> None:
        self.dino = dino

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the distance of each "prior" sample, where there are at least two."""
        priors = [place for place, sample in enumerate(samples) if sample.kind == "prior"]
        found: dict[int, float] = {}
        if len(priors) > 1:
            features = self.dino.features([samples[place].image for place in priors])
            found = dict(zip(priors, (1 - similarity_between(features)).tolist(), strict=True))
        return {"diversity": [found.get(place) for place in range(len(samples))]}


class Drift:
    """How far each "unrelated" sample moved: the CLIP distance to the base's of that prompt and seed."""

    measures = (MEASURES["drift"],)

    def __init__(self, clip: ImageTextScorer) -> None:
        self.clip = clip
        self.before: dict[tuple[str, int], Any] = {}
        """The base's pictures, which come first."""

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the distance of each "unrelated" sample; the base's have none."""
        others = {place: (s.prompt, s.seed) for place, s in enumerate(samples) if s.kind == "unrelated"}
        if samples[0].stage == "base":
            self.before, others = {key: samples[place].image for place, key in others.items()}, {}
        moved = [place for place, key in others.items() if key in self.before]
        found: dict[int, float] = {}
        if moved:
            now = self.clip.image_features([samples[place].image for place in moved])
            then = self.clip.image_features([self.before[others[place]] for place in moved])
            found = dict(zip(moved, (1 - (now * then).sum(dim=1)).tolist(), strict=True))
        return {"drift": [found.get(place) for place in range(len(samples))]}
