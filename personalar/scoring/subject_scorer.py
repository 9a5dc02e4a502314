"""The built-in measures: likeness (DINO, CLIP-I), prompt following (CLIP-T, zero-shot), and side effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from personalar.config.scorer_config import ScorerConfig
from personalar.core.measures import MEASURES, Measure
from personalar.core.types import PromptSpec, Sample, Subject
from personalar.scoring.base import Value, mean_similarity, similarity_between
from personalar.scoring.features import ClipScorer, DinoScorer


def load_pair(config: ScorerConfig, *, device: str = "cpu") -> tuple[ClipScorer, DinoScorer]:
    """Load CLIP and DINO on `device`; see `checkpoints.resolve_folder` for their paths."""
    dino = DinoScorer(config.dino or "", device=device, preprocess=config.dino_preprocess)
    return ClipScorer(config.clip or "", device=device), dino


def names_of(clip: ClipScorer, dino: DinoScorer) -> dict[str, str]:
    """Return checkpoints and preprocessing as recorded in run.json."""
    return {
        "clip": clip.name,
        "dino": dino.name,
        "clip_preprocessing": clip.preprocessing,
        "dino_preprocessing": dino.preprocessing,
    }


BARE = PromptSpec(text="a {}", category="plain")


class SubjectScorer:
    """Score samples against the photos of one subject.

    A line of "clip_t" also contains "clip_text", the text that CLIP read. If the prompt asks for a place, an
    accessory or a style, it contains "context_top1", "accessory_top1" or "style_top1": whether zero-shot CLIP
    chose the right one among those of all prompts.

    Args:
        clip: CLIP.
        dino: DINO.
        subject: the subject; features of its photos are computed once, here.
        prompts: all prompts of the evaluation, the alternatives of the zero-shot accuracies. If empty, those
            of the samples of a call are used.
        text: what CLIP-T reads: "class" ("[V] cat" becomes "cat") or "prompt" (unchanged).
    """

    batch = 64

    def __init__(
        self,
        clip: ClipScorer,
        dino: DinoScorer,
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
        names = ("dino", "clip_i", "clip_t", "context_accuracy", "accessory_accuracy", "style_accuracy")
        measures = MEASURES | {"clip_t": replace(MEASURES["clip_t"], reads=text)}
        self.measures = [measures[name] for name in names]
        self.dino_references = dino.features(subject.images)  # (R, D)
        self.clip_references = clip.image_features(subject.images)  # (R, D')

    def bounds(self) -> dict[str, dict[str, float] | None]:
        """Return reference values of likeness.

        Returns:
            "floor": mean likeness of other individuals of the class; "ceiling": of unseen views of the
            subject; both are None for photographs. "photos": mean likeness of the photos to each other, and
            "dino_max", that of the most similar pair; None for a single photo.
        """
        return {
            "floor": self._likeness(self.subject.others),
            "ceiling": self._likeness(self.subject.holdout),
            "photos": self._photos(),
        }

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return for each measure one value per sample; see `base.Scorer.score`.

        If `prompts` was given, a value does not depend on the other samples of the call.
        """
        images, texts = [sample.image for sample in samples], [sample.prompt for sample in samples]
        clip_images = self.clip.image_features(images)  # (B, D')
        dino_images = self.dino.features(images)  # (B, D)
        likeness = mean_similarity(dino_images, self.dino_references).tolist()
        # Features are normalised, so the sum of products is the cosine.
        following = (clip_images * self.clip.text_features(texts)).sum(dim=1).tolist()
        nearest = (dino_images @ self.dino_references.T).max(dim=1)
        # The same alternatives for every call, otherwise accuracy would depend on the batch.
        specs = self.prompts or tuple(sample.spec for sample in samples)
        similarity, photo = nearest.values.tolist(), nearest.indices.tolist()
        dino: list[Value] = []
        clip_t: list[Value] = []
        for i, sample in enumerate(samples):
            near = {"nearest": round(similarity[i], 6), "nearest_reference": photo[i]}
            dino.append({"value": likeness[i], **near})
            answers = self._zero_shot(sample.spec, clip_images[i], specs)
            clip_t.append({"value": following[i], "clip_text": texts[i], **answers})
        clip_i = mean_similarity(clip_images, self.clip_references).tolist()
        return {"dino": dino, "clip_i": clip_i, "clip_t": clip_t}

    def _photos(self) -> dict[str, float] | None:
        if len(self.subject.images) < 2:
            return None
        pairs = self.dino_references @ self.dino_references.T
        pairs.fill_diagonal_(-1)  # the similarity of a photo to itself is not a pair
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

    def _zero_shot(self, prompt: PromptSpec, image: Tensor, specs: Sequence[PromptSpec]) -> dict[str, bool]:
        """Return whether the place, accessory or style of `prompt` matches the picture (D',) best."""
        answers = {}
        if prompt.category == "recontext" and prompt.context is not None:
            rivals = [spec for spec in specs if spec.category == "recontext" and spec.context is not None]
            answers["context_top1"] = self._closest(image, rivals, "context") == prompt.context
        if prompt.category == "accessory" and prompt.accessory is not None:
            # "No accessory" competes too: a picture without any must not be right by chance. Not with the
            # words of the plain prompts, because "a photo of" alone makes CLIP prefer them for photos.
            rivals = [*(spec for spec in specs if spec.accessory is not None), BARE]
            found = self._closest(image, rivals, "accessory", "colour")
            answers["accessory_top1"] = found == (prompt.accessory, prompt.colour)
        if prompt.style is not None:
            rivals = [spec for spec in specs if spec.style is not None or spec.category == "plain"]
            answers["style_top1"] = self._closest(image, rivals, "style") == prompt.style
        return answers

    def _closest(self, image: Tensor, specs: Iterable[PromptSpec], *fields: str) -> Any:
        """Return the `fields` of the spec whose text matches the picture (D',) best."""
        texts: dict[Any, str] = {}
        for spec in specs:
            answer = tuple(getattr(spec, field) for field in fields)
            # One text per answer: several texts would raise the chance of that answer.
            texts.setdefault(answer, spec.text.replace("{}", self.subject.noun))
        features = self.clip.text_features(list(texts.values()))  # (answers, D')
        best = list(texts)[int(torch.argmax(features @ image))]
        return best if len(fields) > 1 else best[0]


class Diversity:
    """Diversity of the "prior" samples: mean DINO distance (1 - cosine) of each to the others."""

    measures = (MEASURES["diversity"],)

    def __init__(self, dino: DinoScorer) -> None:
        self.dino = dino

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the mean distance of each "prior" sample; None for other kinds and for a single sample."""
        priors = [place for place, sample in enumerate(samples) if sample.kind == "prior"]
        found: dict[int, float] = {}
        if len(priors) > 1:
            features = self.dino.features([samples[place].image for place in priors])
            found = dict(zip(priors, (1 - similarity_between(features)).tolist(), strict=True))
        return {"diversity": [found.get(place) for place in range(len(samples))]}


class Drift:
    """Drift of the "unrelated" samples: CLIP distance to the base's picture of the same prompt and seed."""

    measures = (MEASURES["drift"],)

    def __init__(self, clip: ClipScorer) -> None:
        self.clip = clip
        self.before: dict[tuple[str, int], Any] = {}
        """Pictures of the base by (prompt, seed), stored when the base's samples are scored."""

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the distance of each "unrelated" sample; None for other kinds and for the base."""
        others = {place: (s.prompt, s.seed) for place, s in enumerate(samples) if s.kind == "unrelated"}
        # The base is scored before any other stage; its pictures are the reference.
        if samples[0].stage == "base":
            self.before, others = {key: samples[place].image for place, key in others.items()}, {}
        moved = [place for place, key in others.items() if key in self.before]
        found: dict[int, float] = {}
        if moved:
            now = self.clip.image_features([samples[place].image for place in moved])
            then = self.clip.image_features([self.before[others[place]] for place in moved])
            found = dict(zip(moved, (1 - (now * then).sum(dim=1)).tolist(), strict=True))
        return {"drift": [found.get(place) for place in range(len(samples))]}


class StyleScores:
    """Scores of a style: likeness and prompt following in one number, and how prompts without it change.

    "style_text" is the harmonic mean of DINO (to the pictures of the style) and CLIP-T. Alone, a copy of one
    of these pictures has the highest DINO, and a picture without the style the highest CLIP-T. "style_drift"
    is the increase of DINO on prompts without [V] since the base, for the same prompt and seed.

    Args:
        main: the scorer of the same pictures.
    """

    batch = 64
    measures = (
        Measure(name="style_text", title="style and text", range=(0, 1), reads="class"),
        Measure(name="style_drift", title="style drift", range=(-2, 2), better="same", kind="class"),
    )

    def __init__(self, main: SubjectScorer) -> None:
        self.main = main
        self.before: dict[tuple[str, int], float] = {}
        """DINO of the base's pictures by (prompt, seed), stored when the base's samples are scored."""
        self.version = " and ".join(judge.name.rpartition("#")[2] for judge in (main.dino, main.clip))

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return both measures; the drift of "class" samples only, and not of the base."""
        images = [sample.image for sample in samples]
        dino = mean_similarity(self.main.dino.features(images), self.main.dino_references)
        texts = self.main.clip.text_features([sample.prompt for sample in samples])
        clip_t = (self.main.clip.image_features(images) * texts).sum(dim=1)
        like, follow = dino.clamp(min=0), clip_t.clamp(min=0)
        # Never 0 in the denominator; the numerator is 0 there.
        both = 2 * like * follow / (like + follow).clamp(min=1e-8)
        drift: list[Value] = [None] * len(samples)
        for place, sample in enumerate(samples):
            key, value = (sample.prompt, sample.seed), float(dino[place])
            if sample.stage == "base":
                self.before[key] = value
            elif sample.kind == "class" and key in self.before:
                drift[place] = value - self.before[key]
        return {"style_text": both.tolist(), "style_drift": drift}
