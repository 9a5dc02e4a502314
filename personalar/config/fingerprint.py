"""The settings that a result depends on: runs with equal settings give equal results.

Settings on the command line that have no effect in a run are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from personalar.config.fields import key_of
from personalar.config.model_config import PARTS
from personalar.config.run_config import RunConfig, StageMethod
from personalar.config.scorer_config import ScorerConfig, identity
from personalar.config.subject_config import STYLE


def learning_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that determine what is learned, as plain values.

    Paths are left out: photos and base are identified by fingerprints of their content.
    """
    # Remove everything that cannot change the result: messages, devices and paths.
    model, subject = asdict(config.model), asdict(config.subject)
    notes = ("photo_warning", "float16_problem", "nearest_problem")
    for name in (*notes, "family", "accelerator", "path", "vq_path"):
        model.pop(name)
    for part in filter(None, map(model.get, PARTS)):
        part.pop("files")  # patterns; the files themselves have a fingerprint
    for name in ("path", "source"):
        subject.pop(name)
    # Which pictures they are is part of the subject's fingerprint.
    subject["proxies"] = subject["proxies"] is not None
    model["sampling"].pop("batch")  # does not change any picture
    # Numbers of other methods: a version that adds a method must not change the settings of this one.
    used = {stage.numbers for stage in config.method.stages.values()}
    stages = model["recipe"]["stages"]
    model["recipe"]["stages"] = {name: numbers for name, numbers in stages.items() if name in used}
    if model["layout"] is not None:
        # Only a note about prompts depends on them.
        model["layout"].pop("known_words")
    # Of the trainer's arguments those that change more than rounding.
    numbers = ("precision", "gradient_clip_algorithm")
    return {
        "strength": config.samples.strength,
        "trainer": {name: getattr(config.trainer, name) for name in numbers},
        "model": model,
        "subject": subject,
        "method": asdict(config.method),
        "prior": asdict(config.prior),
        "decoder": config.decoder.settings,
        "optimizer": config.optimizer,
        "scheduler": config.scheduler,
        "seed": config.seed,
        **_selection(config),
    }


def _selection(config: RunConfig) -> dict[str, Any]:
    """Return what the selection of a step depends on; empty without it."""
    if not config.selection.scorer.scores:
        return {}
    samples = asdict(config.samples)
    names = ("grid_every_steps", "num_grid_prompts", "prompts", "prompt_set")
    grid = {name: samples[name] for name in names} | {"seed": config.samples.seeds[0]}
    rule = {"measures": config.selection.measures, "likeness_weight": config.selection.likeness_weight}
    return {"selection": {"scorer": judges_of(config.selection.scorer), **rule, "grid": grid}}


def concept_settings(config: RunConfig) -> dict[str, Any]:
    """Return `learning_settings` with the paths of the base, which a concept records for loading it."""
    settings, model = learning_settings(config), config.model
    return {**settings, "model": {**settings["model"], "path": model.path, "vq_path": model.vq_path}}


def judges_of(scorer: ScorerConfig) -> dict[str, Any]:
    """Return the settings that scores depend on."""
    judges = asdict(scorer)
    judges.pop("photo_warning")  # it changes messages only
    judges["extra"] = {name: identity(settings) for name, settings in scorer.extra.items()}
    return judges


def stage_settings(settings: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """Return the part of `learning_settings` that a method's first stage depends on.

    Two runs with equal parts learn the same in this stage, so one can reuse the other's result.

    Args:
        settings: from `learning_settings`.
        stage: name of the stage; the result is None if it is not the method's first.
    """
    method, model = settings["method"], settings["model"]
    if next(iter(method["stages"]), None) != stage:
        return None
    chosen, recipe = method["stages"][stage], model["recipe"]
    # Stage 1 of two methods is the same even if their stage 2 differs: keep its own settings only.
    recipe = {name: value for name, value in recipe.items() if name != "trained_weights"}
    mine = {**recipe, "stages": recipe["stages"][chosen["numbers"]]}
    # The tokens of later stages' adapters have rows from the start.
    later = {name: s["adapters"] for name, s in method["stages"].items() if name != stage and s["adapters"]}
    others = settings if mine["stages"]["replay_ratio"] else {**settings, "prior": None}
    return {
        **others,
        "model": {**model, "recipe": mine},
        # Only LoRA stages have quantized weights, see `training.memory_fit`.
        "method": {
            "stage": chosen,
            "base_bits": method["base_bits"] if chosen["lora"]["rank"] else 16,
            **({"adapters": later} if later else {}),
        },
    }


def request_of(config: RunConfig) -> dict[str, Any]:
    """Return what a run must produce: its stages, pictures and scores, in the form of run.json."""
    samples = asdict(config.samples)
    samples.pop("strength")  # among `learning_settings`
    return {
        "stages": config.selected,
        "samples": samples,
        "scorer": judges_of(config.scorer),
    }


def _is_default_of(name: str) -> Callable[[RunConfig], bool]:
    return lambda c: getattr(c.prior, name) == getattr(c.model.recipe.data, f"replay_{name}")


STAGES = "model.recipe.stages"
READ_IF: dict[str, tuple[Callable[[RunConfig], bool], str]] = {
    "samples.prior_images": (lambda c: "prior" in c.samples.kinds, "samples.kinds=[subject,prior]"),
    "samples.time_share": (
        lambda c: c.samples.grid_every_steps > 0 and not c.selection.scorer.scores,
        "samples.grid_every_steps above 0, and no selection.scorer, which needs every grid",
    ),
    "prior": (
        lambda c: (
            c.prior.kind == "none"
            or any(c.model.recipe.stages[s.numbers].replay_ratio for s in c.method.stages.values())
        ),
        f"a stage with {STAGES}.*.replay_ratio above 0",
    ),
    **{
        f"scorer.{name}": (lambda c: c.scorer.judges, "CLIP and DINO (scorer.clip and scorer.dino)")
        for name in ("clip_text", "dino_preprocess", "subject_crop", "outside")
    },
    "selection.scorer.*": (lambda c: c.selection.scorer.scores, "selection.scorer other than none"),
    "selection.measures": (lambda c: c.selection.scorer.scores, "selection.scorer"),
    "selection.likeness_weight": (lambda c: c.scorer.scores or c.selection.scorer.scores, "a scorer"),
    "model.recipe.identifier.words": (
        lambda c: c.model.recipe.identifier.init == "words",
        "model.recipe.identifier.init=words",
    ),
    "model.recipe.identifier.further": (
        lambda c: c.model.recipe.identifier.rows > 1,
        "model.recipe.identifier.rows above 1",
    ),
    "model.recipe.identifier.optimizer": (
        lambda c: any(not stage.changes_network for stage in c.method.stages.values()),
        "a stage that trains nothing but the embeddings, as in method=paper",
    ),
    "model.recipe.identifier.pull": (
        lambda c: c.model.recipe.identifier.optimizer is not None,
        "model.recipe.identifier.optimizer=direction",
    ),
    "model.recipe.betas": (
        lambda c: list(c.optimizer.get("betas") or ()) == c.model.recipe.betas,
        "optimizer=adamw or adamw8bit, and a run that does not set optimizer.betas",
    ),
    "model.recipe.data.crop_scale": (
        lambda c: c.model.recipe.data.crops_per_photo > 0,
        "model.recipe.data.crops_per_photo above 0",
    ),
    "model.recipe.trained_weights": (
        lambda c: any(s.parameters == c.model.recipe.trained_weights for s in c.method.stages.values()),
        "method=paper or method=joint; other methods list what they train",
    ),
    **{
        key: (
            lambda c: c.has_prior,
            f"prior.kind other than none, and a stage with {STAGES}.*.replay_ratio above 0",
        )
        for key in (
            "prior.weight",
            "prior.append",
            "prior.images",
            "prior.prompt*",
            "model.recipe.data.replay_*",
        )
    },
    **{
        f"model.recipe.data.replay_{name}": (
            _is_default_of(name),
            f"a run that does not set prior.{name} (set prior.{name} instead)",
        )
        for name in ("weight", "images", "prompts", "prompts_live", "prompt_dropout")
    },
    "samples.prompt_set": (lambda c: c.samples.prompts is None, "samples.prompts=null, and no style"),
    "model.layout.negative_prompt": (
        lambda c: getattr(c.model.layout, "unconditional", None) == "negative",
        "model.layout.unconditional=negative",
    ),
    "trainer.checkpoint_every_steps": (lambda c: bool(c.callbacks.get("checkpoint")), "callbacks.checkpoint"),
    "subject.seed": (lambda c: not c.subject.photographs, "a rendered subject"),
    "subject.description": (
        lambda c: "description" in c.samples.kinds,
        "samples.kinds=[subject,description]",
    ),
    "scorer.url": (lambda c: bool(c.scorer.extra), "scorer=vlm, or another scorer in scorer.extra"),
    "subject.proxy_share": (lambda c: c.subject.proxies is not None, "subject.proxies"),
    **{
        key: (lambda c: c.subject.noun != STYLE, "a subject with a class, which a style does not have")
        for key in ("subject.live", "model.recipe.data.class_name")
    },
}
"""Setting (fnmatch pattern) -> condition under which a run uses it, and the condition in words."""
IN_STAGE: dict[str, tuple[Callable[[RunConfig, StageMethod], bool], str]] = {
    "lora.every_n_layers": (lambda c, stage: stage.lora.rank > 0, "lora.rank above 0 in this stage"),
    "schedule": (lambda c, stage: "{schedule}" in str(c.scheduler), "scheduler=recipe"),
    "weight_decay": (
        lambda c, stage: stage.changes_network,
        "a stage that trains weights, because the learned embeddings never decay",
    ),
    "identifier_lr": (lambda c, stage: stage.identifier, "a stage with identifier=true"),
    "replay_ratio": (lambda c, stage: c.prior.kind != "none", "prior.kind other than none"),
}
"""The same for settings of one stage in `method.stages`, or of the stages with one set of numbers."""


def check_read(config: RunConfig, words: Sequence[str]) -> None:
    """Raise ValueError if one of the overrides `words` has no effect in this run, started from Python."""
    for word in words:
        if key_of(word).startswith(("hydra.", "hydra/")) and key_of(word) != "hydra.searchpath":
            raise ValueError(f"{word} is for the command line: leave it out; for a folder pass folder=DIR")
    if found := unread(config, words):
        raise ValueError(found)


def unread(config: RunConfig, words: Iterable[str]) -> str | None:
    """Return a message about the first of the overrides `words` that has no effect in this run, or None."""
    # A dict as an ordered set: two stages can share hyperparameters.
    read = {stage.numbers: None for stage in config.method.stages.values()}
    for word in words:
        key = key_of(word)
        parts = key.removeprefix(f"{STAGES}.").split(".")
        if key.startswith(f"{STAGES}.") and parts[0] not in read:
            # The same hyperparameter of the stages that this method has.
            rest = ".".join(parts[1:])
            ways = " or ".join(f"{STAGES}.{name}.{rest}".rstrip(".") for name in read)
            return f"method={config.method.name} does not use {key}: set {ways}"
        for pattern, (is_read, needs) in READ_IF.items():
            if fnmatchcase(key, pattern) and not is_read(config):
                return f"{key} has no effect in this run: it needs {needs}"
        if missing := _unread_in_stage(config, key):
            return f"{key} has no effect in this run: it needs {missing}"
    return None


def _unread_in_stage(config: RunConfig, key: str) -> str | None:
    """Return what the setting `key` of a stage needs to have an effect; None if it has one."""
    stages = config.method.stages
    for name, stage in stages.items():
        for prefix, users in (
            (f"method.stages.{name}.", [stage]),
            (
                f"{STAGES}.{stage.numbers}.",
                [each for each in stages.values() if each.numbers == stage.numbers],
            ),
        ):
            is_read, needs = IN_STAGE.get(key.removeprefix(prefix), (lambda *_: True, ""))
            if not any(is_read(config, user) for user in users):
                return needs
    return None
