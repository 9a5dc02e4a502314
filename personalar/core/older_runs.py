"""Settings in the run.json of older versions, under the names that they have now.

A run that an older version began then goes on, and its stages may be reused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

GONE = {"init": "above", "coupling": "gumbel", "relax": 0, "relax_distance": 0.1}
"""Decoder settings that are gone, with the value that every run has now."""
QKV = "model.layers.*.self_attn.[qkv]_proj.weight"


def modernized(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run.json with today's keys; those of this version come back equal."""
    new = copy.deepcopy(dict(settings))
    for group in ("model", "subject"):  # where things lie says nothing about what they are
        for name in ("path", "vq_path"):
            new.get(group, {}).pop(name, None)
    if "decoder" in new:
        _decoder(new["decoder"])
    if "optimizer" not in new and "stages" in new.get("method", {}):
        _stages(new)
    return new


def _decoder(decoder: dict[str, Any]) -> None:
    for name, value in GONE.items():
        if decoder.get(name) == value:
            del decoder[name]
    moved = decoder.get("_target_", "").replace("personalar.decoding.", "personalar.generation.decoders.")
    decoder["_target_"] = moved


def _stages(settings: dict[str, Any]) -> None:
    """Rates were `lr` and `identifier_lr`; AdamW's moments and more weights to train were a stage's."""
    recipe, method = settings["model"]["recipe"], settings["method"]
    more = {}
    for name, numbers in recipe["stages"].items():
        recipe["betas"] = numbers.pop("betas")
        more[name] = numbers.pop("also_train")
        if numbers["lr"] == 0:  # it trained rows alone
            numbers |= {"lr": numbers["identifier_lr"], "identifier_lr": None}
    for stage in method["stages"].values():
        stage["parameters"] = [*stage["parameters"], *more[stage["numbers"]]]
        stage |= {"start": None, "adapters": {}}
    recipe["trained_weights"] = [QKV, *more.get("transformer", [])]
    settings["optimizer"] = {"_target_": "torch.optim.AdamW", "betas": recipe["betas"], "fused": True}
    settings["scheduler"] = {
        "_target_": "personalar.training.stage.recipe_schedule",
        "schedule": "{schedule}",
        "steps": "{steps}",
    }
