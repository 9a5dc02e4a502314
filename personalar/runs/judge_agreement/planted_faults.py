"""A test of the scorers with planted faults: correct views of rendered subjects, and views with one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from personalar.config.commands import EvaluateConfig
from personalar.config.compose import composed, read_config
from personalar.config.subject_config import SubjectConfig
from personalar.core.types import Sample, Subject
from personalar.data.subject import load_subject
from personalar.reports.agreement_statistics import auc
from personalar.reports.bootstrap import group_mean, interval
from personalar.runs.benchmark import subject_overrides
from personalar.runs.judge_agreement.agreement import Cell, Table, judged
from personalar.scoring.judges import load_judges
from personalar.scoring.subject_scorer import load_pair

SAME, ANY = "same view", "any view"
RIGHT = "right"
"""`Sample.stage` of samples without a fault; for the others it is the name of the fault."""


def with_truth(config: EvaluateConfig) -> tuple[Table, str]:
    """Return how often each measure prefers the correct view, by fault, and a note for readers."""
    from personalar.nano.world.faults import FAULTS

    found: dict[str, dict[str, list[list[float]]]] = {}
    pair = load_pair(config.scorer) if config.scorer.judges else None
    subjects = subject_overrides(config.benchmark)
    for name, overrides in subjects.items():
        samples, subject = planted_views(read_config(composed("run", overrides)).subject)
        specs = [sample.spec for sample in samples]
        judges = load_judges(config.scorer, subject, prompts=specs, device="cpu", pair=pair)
        lines = judges.score(samples)
        for measure in judged(judges.measures):
            mine = [line for line in lines if line["scorer"] == measure.name]
            values = {(line["stage"], line["seed"]): line["value"] for line in mine}
            title = measure.title or measure.name
            for fault in FAULTS:
                right, wrong = pairs_of(values, fault)
                area = auc([*right, *wrong], [True] * len(right) + [False] * len(wrong))
                groups = {SAME: preferences(right, wrong), ANY: [] if area is None else [area]}
                for view, group in groups.items():
                    found.setdefault(f"{title}, {view}", {}).setdefault(fault, []).append(group)
        print(f"{name}: {len(samples)} pictures", flush=True)
    note = (
        f"{SAME}: share of pairs in which the right picture scores higher than the same view with the fault; "
        f"{ANY}: the same for pictures of different prompts (AUC). 0.5: the fault has no effect; "
        f"less: the fault scores higher. {len(subjects)} rendered subjects, one pair per prompt; means over "
        "pairs, then over subjects, with 95 % bootstrap intervals."
    )
    same_first = sorted(found, key=lambda title: title.endswith(ANY))
    return {title: _cells(found[title]) for title in same_first}, note


def _cells(by_fault: dict[str, list[list[float]]]) -> dict[str, Cell]:
    return {
        fault: {
            "value": group_mean(groups),
            "interval": interval(groups),
            "subjects": sum(bool(group) for group in groups),
        }
        for fault, groups in by_fault.items()
    }


def pairs_of(values: dict[tuple[str, int], float], fault: str) -> tuple[list[float], list[float]]:
    """Return the values of the correct views and of the views with the fault, in the same order.

    Args:
        values: values of a measure by (stage, seed) of the sample.
    """
    seeds = [seed for stage, seed in values if stage == fault and (RIGHT, seed) in values]
    return [values[RIGHT, seed] for seed in seeds], [values[fault, seed] for seed in seeds]


def preferences(right: Sequence[float], wrong: Sequence[float]) -> list[float]:
    """Return for each pair 1 if the correct view scores higher, 0 if lower, and 0.5 if equal."""
    return [0.5 if good == bad else float(good > bad) for good, bad in zip(right, wrong, strict=True)]


def planted_views(settings: SubjectConfig) -> tuple[list[Sample], Subject]:
    """Return views of a rendered subject for each prompt, correct and with each fault, and the subject.

    Both samples of a pair have the same seed. Prompts for another colour are left out, because they change
    the identity themselves.
    """
    from personalar.nano.world.album import Picture, draw
    from personalar.nano.world.faults import FAULTS
    from personalar.nano.world.prompt_set import bench_prompts
    from personalar.nano.world.subjects import scene_for_prompt, subject_instance

    subject = load_subject(settings)
    instance, samples = subject_instance(subject.noun, settings.seed), []
    specs = [spec for spec in bench_prompts(subject.noun) if spec.category != "property"]
    for number, spec in enumerate(specs):
        # One stream per prompt: a new fault must not change the views of other prompts.
        rng = np.random.default_rng([settings.seed, 4, number])
        scene, prompt = scene_for_prompt(instance, spec, rng), spec.text.replace("{}", f"[V] {subject.noun}")
        image = draw(Picture(scenes=(scene,)))
        right = Sample(stage=RIGHT, prompt=prompt, kind="subject", seed=number, spec=spec, image=image)
        samples.append(right)
        for name, plant in FAULTS.items():
            if (faulty := plant(scene, rng)) is not None:
                samples.append(replace(right, stage=name, image=draw(Picture(scenes=(faulty,)))))
    return samples, subject
