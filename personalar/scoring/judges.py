"""All judges of a run by one contract (`base.Scorer`): those of this package and those from outside.

One line for each sample and measure that has a value, in the form that `scores.jsonl` keeps::

    {"stage", "kind", "prompt", "template", "seed", "category", "image", "scorer": "dino" | ..., "value"}

"template" is the prompt with "{}" for the subject, the same at every stage; "image" is relative to the run
folder; "scorer" is the measure's name. A scorer may add facts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from personalar.config.plugins import build
from personalar.config.scorer_config import ScorerConfig
from personalar.core.measures import Measure, check_new
from personalar.core.types import PromptSpec, Sample, Subject, image_fingerprint
from personalar.scoring.base import Scorer
from personalar.scoring.metrics import MeanScores
from personalar.scoring.subject_scorer import Diversity, Drift, SubjectScorer, load_pair

_IMAGE_TOKEN = re.compile(r"\s*\[S\d+\]")


def class_text(prompt: str, noun: str) -> str:
    """Return `prompt` with the class in the place of "[V] cat" or "[V]": a judge has never seen "[V]"."""
    named = prompt.replace(f"[V] {noun}", noun).replace("[V]", noun)
    return _IMAGE_TOKEN.sub("", named).strip()


class Judges:
    """The scorers of one subject's pictures.

    Args:
        main: the judges of this package; None: they do not judge.
        extra: scorers from outside, by name.
        names: who judges and how, for run.json; `extra` under their names.

    Raises:
        ValueError: one of `extra` does not meet the contract.
    """

    def __init__(
        self,
        subject: Subject,
        main: SubjectScorer | None,
        extra: Mapping[str, Scorer],
        names: Mapping[str, str],
    ) -> None:
        self.subject, self.main = subject, main
        self.names = {**names, **(main.names if main else {})}
        own: list[Scorer] = [main, Diversity(main.dino), Drift(main.clip)] if main else []
        self.scorers = [*own, *extra.values()]
        self.measures: list[Measure] = [measure for scorer in own for measure in scorer.measures]
        for name, scorer in extra.items():
            if main and name in main.names:
                raise ValueError(f"scorer.extra.{name}: the name {name} is taken; choose another")
            self.measures += declared(name, scorer, self.measures)

    def bounds(self) -> dict[str, Any]:
        """Return `SubjectScorer.bounds`."""
        return self.main.bounds() if self.main else {"floor": None, "ceiling": None}

    def note(self, prompts: Sequence[str]) -> str | None:
        """Return a sentence on prompts that are longer than what CLIP reads, or None."""
        if self.main is None:
            return None
        return self.main.clip.cut_note([as_read(self.main, prompt, self.subject.noun) for prompt in prompts])

    def score(
        self, samples: Sequence[Sample], advance: Callable[[int], object] = lambda count: None
    ) -> list[dict[str, Any]]:
        """Return the lines of `samples`, whose number `advance` is told as they are scored.

        Raises:
            ValueError: a scorer does not give each sample one finite number, or None, for each measure.
        """
        lines = []
        for scorer in self.scorers if samples else []:
            size = getattr(scorer, "batch", None) or len(samples)
            for start in range(0, len(samples), size):
                part = samples[start : start + size]
                lines += score_lines(scorer, part, self.subject)
                if scorer is self.scorers[0]:
                    advance(len(part))
        return lines


def as_read(scorer: Scorer, prompt: str, noun: str) -> str:
    """Return the text of `prompt` that the measures of `scorer` declare to read."""
    return class_text(prompt, noun) if "class" in {m.reads for m in scorer.measures} else prompt


def declared(name: str, scorer: Any, known: Sequence[Measure]) -> list[Measure]:
    """Return the measures of a scorer from outside.

    Args:
        name: the scorer's, in `scorer.extra`.
        known: the measures so far.

    Raises:
        ValueError: it does not meet the contract, or the name of a measure is taken.
    """
    given = getattr(scorer, "measures", None)
    found = given if isinstance(given, Sequence) else ()
    listed = found and all(isinstance(measure, Measure) for measure in found)
    if not listed or not callable(getattr(scorer, "score", None)):
        raise ValueError(
            f"scorer.extra.{name}: {type(scorer).__name__} is not a scorer: give it `measures`, a tuple of "
            "personalar.core.measures.Measure, and a method score(samples, subject)"
        )
    for place, measure in enumerate(found):
        check_new(measure, [other.name for other in (*known, *found[:place])])
    return [replace(measure, judges=(name,)) for measure in found]


def score_lines(scorer: Scorer, samples: Sequence[Sample], subject: Subject) -> list[dict[str, Any]]:
    """Return the lines of one scorer about `samples`. Raises ValueError as `Judges.score` does."""
    names = [measure.name for measure in scorer.measures if measure.field == "value"]
    shown = [replace(sample, prompt=as_read(scorer, sample.prompt, subject.noun)) for sample in samples]
    found, who = scorer.score(shown, subject), type(scorer).__name__
    counts = {name: len(values) for name, values in found.items()} if isinstance(found, Mapping) else {}
    if counts != dict.fromkeys(names, len(samples)):
        told = ", ".join(f"{count} of {name}" for name, count in counts.items()) or type(found).__name__
        raise ValueError(
            f"{who}.score returned {told} for {len(samples)} samples: it must return a dict with "
            f"{len(samples)} values (None where a picture has none) for each of {', '.join(names)}"
        )
    lines = []
    for place, sample in enumerate(samples):
        for name in names:
            value = found[name][place]
            facts = value if isinstance(value, Mapping) else {"value": value}
            if facts["value"] is None:
                continue
            if not math.isfinite(number := float(facts["value"])):
                raise ValueError(
                    f"{who}.score returned {name}={number} for {sample.prompt!r}, seed {sample.seed}: it "
                    "must be a finite number, or None where a picture has none"
                )
            image = f"images/{sample.stage}/{sample.path.name}" if sample.path else None
            about = {name: getattr(sample, name) for name in ("stage", "kind", "prompt")}
            about |= {"template": sample.spec.text, "seed": sample.seed, "category": sample.spec.category}
            lines.append({**about, "image": image, "scorer": name, **facts, "value": round(number, 6)})
    return lines


def load_judges(
    config: ScorerConfig, subject: Subject, *, prompts: Sequence[PromptSpec], device: str
) -> Judges:
    """Return the judges that `config` names.

    Raises:
        ValueError: a scorer from outside cannot be made, or does not meet the contract.
    """
    main = None
    if config.judges:
        pair = load_pair(config, device=device)
        main = SubjectScorer(*pair, subject, prompts=prompts, text=config.clip_text)
    extra = {name: build(f"scorer.extra.{name}", settings) for name, settings in config.extra.items()}
    names = {
        name: json.dumps(settings | _version(extra[name]), sort_keys=True)
        for name, settings in config.extra.items()
    }
    return Judges(subject, main, extra, names)


def _version(scorer: Scorer) -> dict[str, str]:
    version = getattr(scorer, "version", None)
    return {"version": str(version)} if version else {}


def score_pictures(
    pictures: Sequence[Image],
    prompts: Sequence[str],
    *,
    photos: Sequence[Image],
    noun: str,
    config: ScorerConfig,
) -> dict[str, float]:
    """Return the mean of each measure over `pictures`; see `personalar.score`."""
    if len(pictures) != len(prompts) or not pictures or not photos:
        raise ValueError(
            f"{len(pictures)} pictures, {len(prompts)} prompts and {len(photos)} photos: give one prompt for "
            "each picture, and at least one of each"
        )
    images = tuple(photo.convert("RGB") for photo in photos)
    subject = Subject(
        name="given", noun=noun, images=images, live=False, fingerprint=image_fingerprint(images)
    )
    specs = [PromptSpec(text=prompt, category="plain") for prompt in prompts]
    samples = [
        Sample(stage="given", prompt=spec.text, kind="subject", seed=number, spec=spec, image=image)
        for number, (image, spec) in enumerate(zip(pictures, specs, strict=True))
    ]
    judges = load_judges(config, subject, prompts=specs, device="cpu")
    means = MeanScores(judges.measures)
    means.update(judges.score(samples))
    return {name: float(value) for name, value in means.compute().items()}
