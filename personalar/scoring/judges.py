"""Run all scorers of a run, built-in and user-defined, and return score lines.

There is one line per sample and measure, as stored in `scores.jsonl`::

    {"stage", "kind", "prompt", "template", "seed", "category", "image", "scorer": "dino" | ..., "value"}

"template" is the prompt with "{}" for the subject, which is the same at every stage. "image" is relative to
the run folder. "scorer" is the name of the measure. A scorer may add fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from personalar.config.compose import composed, read_config
from personalar.config.fields import check_measures, one_of
from personalar.config.plugins import build
from personalar.config.run_config import RunConfig
from personalar.config.scorer_config import ScorerConfig, identity
from personalar.config.subject_config import STYLE
from personalar.core.measures import IN_SUMMARY, Measure, check_new, means
from personalar.core.types import PromptSpec, Sample, Subject, image_fingerprint
from personalar.data.photos.photo_depth import on_white
from personalar.data.prompts import fill, without_style
from personalar.scoring.base import Scorer
from personalar.scoring.features import ClipScorer, DinoScorer
from personalar.scoring.subject_crop import Outside, SubjectCrop
from personalar.scoring.subject_scorer import Diversity, Drift, StyleScores, SubjectScorer, load_pair

TAKEN = "scorer.extra.{name}: the name {name} is already used; choose another"
_IMAGE_TOKEN = re.compile(r"\s*\[S\d+\]")


def class_text(prompt: str, noun: str) -> str:
    """Replace "[V] cat" and "[V]" by the class "cat", because CLIP has not been trained on "[V]".

    The phrase that names a style is left out.
    """
    if noun == STYLE:  # "a dog in the style of [V]" asks for a dog
        prompt = without_style(prompt, "[V]")
    # The longer form first: replacing [V] alone would give "cat cat".
    named = fill(prompt.replace(f"[V] {noun}", "{}").replace("[V]", "{}"), noun)
    return _IMAGE_TOKEN.sub("", named).strip()


class Judges:
    """The scorers of one subject's pictures.

    Args:
        subject: the subject with its photos.
        main: the built-in scorer with CLIP and DINO, or None.
        extra: user-defined scorers by name.
        names: scorer -> description, for run.json.

    Raises:
        ValueError: a user-defined scorer does not have the required attributes, or a name is taken.
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
                raise ValueError(TAKEN.format(name=name))
            self.measures += declared(name, scorer, self.measures)

    def bounds(self) -> dict[str, Any]:
        """Return floor and ceiling of fidelity; see `SubjectScorer.bounds`."""
        return self.main.bounds() if self.main else {"floor": None, "ceiling": None}

    def note(self, prompts: Sequence[str]) -> str | None:
        """Return a note if some prompts are longer than CLIP's context, or None."""
        if self.main is None:
            return None
        return self.main.clip.cut_note([as_read(self.main, prompt, self.subject.noun) for prompt in prompts])

    def score(
        self, samples: Sequence[Sample], advance: Callable[[int], object] = lambda count: None
    ) -> list[dict[str, Any]]:
        """Score samples with all scorers.

        Args:
            samples: the samples of one stage.
            advance: called with the number of samples scored since the last call.

        Returns:
            Score lines; see the module.

        Raises:
            ValueError: a scorer did not return one finite number or None per sample and measure.
        """
        lines = []
        for scorer in self.scorers if samples else []:
            # Without `batch` a scorer gets all samples of a stage at once, for measures over a set.
            size = getattr(scorer, "batch", None) or len(samples)
            for start in range(0, len(samples), size):
                part = samples[start : start + size]
                lines += score_lines(scorer, part, self.subject)
                if scorer is self.scorers[0]:  # count every sample once, not once per scorer
                    advance(len(part))
        return lines


def as_read(scorer: Scorer, prompt: str, noun: str) -> str:
    """Return `prompt` in the form that `scorer` reads: with the class instead of [V], or unchanged."""
    return class_text(prompt, noun) if "class" in {m.reads for m in scorer.measures} else prompt


def declared(name: str, scorer: Any, known: Sequence[Measure]) -> list[Measure]:
    """Return the validated measures of a user-defined scorer.

    Args:
        name: its name in `scorer.extra`.
        scorer: the object.
        known: the measures of other scorers.

    Raises:
        ValueError: `scorer` is not a scorer, its measures read different texts, or the name of a measure is
            already used.
    """
    given = getattr(scorer, "measures", None)
    found = given if isinstance(given, Sequence) else ()
    listed = found and all(isinstance(measure, Measure) for measure in found)
    if not listed or not callable(getattr(scorer, "score", None)):
        raise ValueError(
            f"scorer.extra.{name}: {type(scorer).__name__} is not a scorer: it needs `measures`, a tuple of "
            "personalar.core.measures.Measure, and a method score(samples, subject)"
        )
    if len({measure.reads for measure in found} - {None}) > 1:
        raise ValueError(
            f"scorer.extra.{name}: {type(scorer).__name__} has measures with reads='class' and with "
            "reads='prompt', but a scorer gets one text: divide it into two scorers"
        )
    for place, measure in enumerate(found):
        check_new(measure, [other.name for other in (*known, *found[:place])])
    return [replace(measure, judges=(name,)) for measure in found]


def score_lines(scorer: Scorer, samples: Sequence[Sample], subject: Subject) -> list[dict[str, Any]]:
    """Return the score lines of one scorer; see `Judges.score`, also for errors."""
    names = [measure.name for measure in scorer.measures if measure.field == "value"]
    # The scorer must see the text that its measures declare to read.
    shown = [replace(sample, prompt=as_read(scorer, sample.prompt, subject.noun)) for sample in samples]
    found, who = scorer.score(shown, subject), type(scorer).__name__
    counts = {name: len(values) for name, values in found.items()} if isinstance(found, Mapping) else {}
    # Exactly the declared measures, with one value per sample.
    if counts != dict.fromkeys(names, len(samples)):
        got = ", ".join(f"{count} of {name}" for name, count in counts.items()) or type(found).__name__
        raise ValueError(
            f"{who}.score returned {got} for {len(samples)} samples: it must return a dict with "
            f"{len(samples)} values (None if a measure does not apply) for each of {', '.join(names)}"
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
                    "must be a finite number, or None if the measure does not apply"
                )
            image = f"images/{sample.stage}/{sample.path.name}" if sample.path else None
            about = {name: getattr(sample, name) for name in ("stage", "kind", "prompt")}
            about |= {"template": sample.spec.text, "seed": sample.seed, "category": sample.spec.category}
            lines.append({**about, "image": image, "scorer": name, **facts, "value": round(number, 6)})
    return lines


def load_judges(
    config: ScorerConfig,
    subject: Subject,
    *,
    prompts: Sequence[PromptSpec],
    device: str,
    pair: tuple[ClipScorer, DinoScorer] | None = None,
) -> Judges:
    """Create the scorers of `config`.

    Args:
        config: the `scorer` group.
        subject: the subject with its photos.
        prompts: all prompts of the evaluation; the alternatives of the zero-shot accuracies.
        device: device of CLIP and DINO.
        pair: CLIP and DINO, if they are already loaded (for several subjects).

    Raises:
        ValueError: a user-defined scorer cannot be created or is not valid.
    """
    main = None
    if config.judges:
        clip, dino = pair or load_pair(config, device=device)
        main = SubjectScorer(clip, dino, subject, prompts=prompts, text=config.clip_text)
    # After CLIP and DINO: a missing checkpoint is reported first, and a user's scorer may be slow.
    extra = {name: build(f"scorer.extra.{name}", settings) for name, settings in config.extra.items()}
    ours: dict[str, Scorer] = {}
    if main and subject.noun == STYLE:
        ours["style"] = StyleScores(main)
    if main and config.subject_crop:
        ours["subject_crop"] = SubjectCrop(main.clip, main.dino, subject)
    if main and config.outside:
        ours["outside"] = Outside(main.dino, subject)
    for name in ours.keys() & extra.keys():
        raise ValueError(TAKEN.format(name=name))
    extra |= ours
    names = {
        name: json.dumps(identity(config.extra.get(name, {})) | _version(scorer), sort_keys=True)
        for name, scorer in extra.items()
    }
    return Judges(subject, main, extra, names)


def opaque(image: Image) -> Image:
    """Return `image` in RGB, on white where it is transparent."""
    return (on_white(image)[0] if image.has_transparency_data else image).convert("RGB")


def _version(scorer: Scorer) -> dict[str, str]:
    version = getattr(scorer, "version", None)
    return {"version": str(version)} if version else {}


def check_scorers(config: RunConfig, scorer: Judges | None, selector: Judges | None) -> None:
    """Raise ValueError if `objective` or `selection.measures` names a measure that their scorers lack."""
    if scorer is not None:
        check_measures(config.objective, [*IN_SUMMARY, *(measure.name for measure in scorer.measures)])
    if selector is not None:  # a step is selected by cosine similarities alone
        measures = [m for m in selector.measures if m.better == "higher" and m.is_scored]
        cosines = tuple(measure.name for measure in measures if measure.range == (-1, 1))
        for name in config.selection.measures:
            one_of("selection.measures", name, cosines)


def score(
    pictures: Sequence[Image], prompts: Sequence[str], *settings: str, photos: Sequence[Image], noun: str
) -> dict[str, float]:
    """Return the mean scores of any pictures by measure: "dino", "clip_i", "clip_t" and more.

    Args:
        pictures: the pictures to score.
        prompts: the prompt of each picture, with [V] for the subject.
        settings: scorers, as on the command line: "scorer=dreambench"; default: those of nano.
        photos: photos of the subject, with which the pictures are compared.
        noun: the class of the subject, which CLIP reads instead of "[V] noun".

    Raises:
        ValueError: the numbers of pictures and prompts differ, or there is no photo.
    """
    # A run needs a subject, but only its scorers are used here.
    config = read_config(composed("run", ["subject=cat", *settings])).scorer
    if len(pictures) != len(prompts) or not pictures or not photos:
        raise ValueError(
            f"got {len(pictures)} pictures, {len(prompts)} prompts and {len(photos)} photos: give one prompt "
            "per picture, and at least one of each"
        )
    images = tuple(opaque(photo) for photo in photos)
    subject = Subject(
        name="given", noun=noun, images=images, live=False, fingerprint=image_fingerprint(images)
    )
    specs = [PromptSpec(text=prompt, category="plain") for prompt in prompts]
    samples = [
        Sample(stage="given", prompt=spec.text, kind="subject", seed=number, spec=spec, image=image)
        for number, (image, spec) in enumerate(zip(map(opaque, pictures), specs, strict=True))
    ]
    judges = load_judges(config, subject, prompts=specs, device="cpu")
    found = means(judges.score(samples), judges.measures)
    return {name: value for name, value in found.items() if value is not None}
