"""Settings that a result depends on, and the request of a run: stages, pictures, scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from personalar.config.run_config import RunConfig


def learning_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that determine what is learned, as plain values.

    Photos and base are known by their fingerprints, not by where they lie.
    """
    model, subject = asdict(config.model), asdict(config.subject)
    for name in ("family", "photo_warning", "float16_problem", "accelerator", "path", "vq_path"):
        model.pop(name)
    for name in ("path", "source"):
        subject.pop(name)
    model["sampling"].pop("batch")  # how many pictures are drawn together changes none
    if model["layout"] is not None:
        model["layout"].pop("known_words")
    return {
        "model": model,
        "subject": subject,
        "method": asdict(config.method),
        "decoder": config.decoder.settings,
        "optimizer": config.optimizer,
        "scheduler": config.scheduler,
        "seed": config.seed,
    }


def concept_settings(config: RunConfig) -> dict[str, Any]:
    """Return `learning_settings` and where the base lies, without where the photos lie."""
    settings, model = learning_settings(config), config.model
    return {**settings, "model": {**settings["model"], "path": model.path, "vq_path": model.vq_path}}


def judges_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that scores depend on."""
    judges = asdict(config.scorer)
    for name in ("photo_warning", "likeness_weight"):  # a note, and a curve in training
        judges.pop(name)
    for name in ("extra", "url"):  # as in the records of runs from before there were any
        if not judges[name]:
            judges.pop(name)
    return judges


def stage_settings(settings: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """Return those of `learning_settings` that `stage` depends on, if it is the method's first; else None."""
    method, model = settings["method"], settings["model"]
    if next(iter(method["stages"]), None) != stage:
        return None
    chosen, recipe = method["stages"][stage], model["recipe"]
    recipe = {name: value for name, value in recipe.items() if name != "trained_weights"}
    mine = {**recipe, "stages": recipe["stages"][chosen["numbers"]]}
    return {
        **settings,
        "model": {**model, "recipe": mine},
        "method": {"stage": chosen, "base_bits": method["base_bits"]},
    }


def request_of(config: RunConfig) -> dict[str, Any]:
    """Return the stages, pictures and scores of a run; run.json keeps those that are finished."""
    return {
        "stages": config.selected,
        "samples": asdict(config.samples),
        "scorer": judges_of(config),
    }


def covers(finished: Mapping[str, Any] | None, request: Mapping[str, Any]) -> bool:
    """Tell whether a run has `finished` all of `request`: the same pictures and scores, of these stages."""
    if finished is None:
        return False
    alike = all(finished.get(name) == request[name] for name in ("samples", "scorer"))
    return alike and set(request["stages"]) <= set(finished["stages"])
