"""Conversion of settings in run.json from older versions, so that those runs resume and can be reused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

GONE = {"init": "above", "coupling": "gumbel", "relax": 0, "relax_distance": 0.1}
"""Removed decoder settings, with the value that corresponds to today's behaviour."""
IDENTIFIER = {"rows": 1, "further": "random", "optimizer": None, "pull": 1e-4}
"""Settings `model.recipe.identifier` that older versions did not have, with the value of their behaviour."""
QKV = "model.layers.*.self_attn.[qkv]_proj.weight"


def modernized(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run.json with today's keys; those of this version are returned unchanged."""
    new = copy.deepcopy(dict(settings))
    for group in ("model", "subject"):  # fingerprints identify base and photos, so paths may change
        for name in ("path", "vq_path"):
            new.get(group, {}).pop(name, None)
    for part in ("hub", "vq_hub", "tokenizer_hub"):  # nor do patterns of files matter
        (new.get("model", {}).get(part) or {}).pop("files", None)
    if "decoder" in new:
        _decoder(new["decoder"])
    if identifier := new.get("model", {}).get("recipe", {}).get("identifier"):
        new["model"]["recipe"]["identifier"] = IDENTIFIER | identifier
    if "optimizer" not in new and "stages" in new.get("method", {}):
        _stages(new)
    if "prior" not in new and "stages" in new.get("method", {}) and "recipe" in new.get("model", {}):
        _prior(new)
    return new


def _prior(settings: dict[str, Any]) -> None:
    """Add the settings of prior preservation, and remove the numbers of other methods, in place."""
    recipe, stages = settings["model"]["recipe"], settings["method"]["stages"].values()
    used = {stage.get("numbers") for stage in stages}
    numbers = recipe.get("stages", {})
    recipe["stages"] = {name: each for name, each in numbers.items() if name in used}
    data, names = recipe.get("data", {}), ("images", "prompts", "prompts_live", "prompt_dropout")
    settings["prior"] = {name: data.get(f"replay_{name}") for name in names}
    settings["prior"] |= {"kind": "replay", "weight": None, "append": ""}


def _decoder(decoder: dict[str, Any]) -> None:
    for name, value in GONE.items():
        if decoder.get(name) == value:  # any other value stays and counts as another setting
            del decoder[name]
    moved = decoder.get("_target_", "").replace("personalar.decoding.", "personalar.generation.decoders.")
    decoder["_target_"] = moved


def _stages(settings: dict[str, Any]) -> None:
    """Move per-stage `betas` and `also_train` to today's `optimizer` and `trained_weights`, in place."""
    recipe, method = settings["model"]["recipe"], settings["method"]
    more = {}
    for name, numbers in recipe["stages"].items():
        recipe["betas"] = numbers.pop("betas")
        more[name] = numbers.pop("also_train")
        if numbers["lr"] == 0:  # such a stage trained only [V]; its rate is `lr` today
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
