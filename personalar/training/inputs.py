"""Inputs of a stage: its starting concept, the image codes of the photos, and class images.

Rank zero computes them and writes them to the run folder, where the other processes read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from personalar.concepts.adapters.identifier import (
    Identifier,
    assign_tokens,
    random_rows,
    word_norms,
    word_row,
)
from personalar.concepts.adapters.photo_rows import photo_rows
from personalar.concepts.concept import Concept
from personalar.config.fingerprint import concept_settings
from personalar.config.recipe import DataNumbers, IdentifierNumbers
from personalar.config.run_config import Stage
from personalar.core.console import Reporter
from personalar.core.run_folder import changes
from personalar.data.class_images import class_logits, class_prompts
from personalar.data.codes import cached_codes, cached_tensors, encode_photos, stream_seed, subject_codes
from personalar.data.prompts import SUBJECT_TOKEN, image_token_names, row_names, training_prompt
from personalar.data.references import save_redrawn
from personalar.data.stream import Replay, collate, limit_loss
from personalar.models.base import Backend, TrainingSequence
from personalar.training.context import RunContext
from personalar.training.loss import sequence_loss

LoadBase = Callable[[], Backend]


class StageInputs(NamedTuple):
    """The starting concept and the training images of a stage."""

    concept: Concept
    photo_codes: list[Tensor]
    """For each photo the codes of its crops and copies, (number of views, h, w)."""
    subject_codes: list[Tensor] | None
    """In the shape of `photo_codes`, 1 for codes on the subject; None if no photo has a mask."""
    proxy_codes: list[Tensor]
    """The codes (1, h, w) of each proxy."""
    replay: Replay | None
    """Class images for prior preservation; None if the stage uses none."""


def start_identifier(
    backend: Backend,
    numbers: IdentifierNumbers,
    *,
    prompt: str,
    photos: Sequence[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    reporter: Reporter,
    more: Sequence[str] = (),
) -> Identifier:
    """Return new embeddings for [V] and for one token per photo, with the start that `numbers` describes.

    Args:
        numbers: settings `model.recipe.identifier`.
        prompt: a training prompt with [V] and without per-image tokens, for init="nearest".
        photos: for each photo its codes (h, w), and which of them are on the subject (h, w).
        generator: for random embeddings.
        more: names of further tokens, whose embeddings are random.
    """
    names = (*row_names(SUBJECT_TOKEN, numbers.rows), *image_token_names(len(photos)), *dict.fromkeys(more))
    tokens = assign_tokens(names, backend.reserved_ids)
    table = backend.word_table
    # Drawn for every init, so that the per-image tokens do not depend on how [V] starts.
    rows = random_rows(table[backend.trained_rows], len(names), generator=generator)
    if numbers.init == "nearest":
        known = table[list(backend.reserved_ids)]
        rows[:1] = nearest_row(backend, known, prompt=prompt, photos=photos, reporter=reporter)
    if numbers.init == "words":
        rows[:1] = word_row(table, [backend.encode_text(f" {word}") for word in numbers.words])
    if numbers.further == "kmeans" and numbers.rows > 1:
        parts = [codes[on_subject > 0] for codes, on_subject in photos]
        rows[1 : numbers.rows] = photo_rows(backend, parts, numbers.rows - 1, generator=generator)
    if numbers.optimizer == "direction":
        # This optimizer never changes a norm, so every row must start with the mean norm of words: a mean of
        # several words would be too short. With init=nearest, [V] is a row of the table and keeps its norm.
        scaled = F.normalize(rows, dim=1) * word_norms(backend).mean()
        rows = torch.cat((rows[:1], scaled[1:])) if numbers.init == "nearest" else scaled
    return Identifier(tokens=tokens, rows=rows)


@torch.no_grad()
def nearest_row(
    backend: Backend,
    rows: Tensor,
    *,
    prompt: str,
    photos: Sequence[tuple[Tensor, Tensor]],
    reporter: Reporter,
) -> Tensor:
    """Return the embedding (1, D) that, used for [V] in `prompt`, has the lowest loss on the photos.

    It is for bases that were pretrained with names on the reserved ids. Every row is tried on the first
    photo, and the best eighth on all. For 12 rendered subjects with five photos, the best of 128 rows for all
    photos was among the best 13 for each of them.

    Args:
        rows: candidates (K, D).
        photos: see `start_identifier`.
    """
    tokens = {SUBJECT_TOKEN: backend.reserved_ids[0]}
    limit = partial(limit_loss, codes=backend.choices("image_tokens"))
    sequences = [
        limit(backend.training_sequence(prompt, codes, tokens, loss="image_tokens"), on_subject)
        for codes, on_subject in photos
    ]

    def loss(row: Tensor, some: Sequence[TrainingSequence]) -> float:
        identifier = Identifier(tokens=tokens, rows=row[None].float()).to(rows.device)
        batch = {name: data.to(rows.device) for name, data in collate(some, pad=backend.pad_id).items()}
        return float(sequence_loss(backend, identifier, batch, loss="image_tokens", z_loss=0.0))

    with reporter.phase("start of [V]", len(rows), "names tried") as advance:
        first = []
        for row in rows:
            first.append(loss(row, sequences[:1]))
            advance(1)
        best = sorted(range(len(rows)), key=first.__getitem__)[: -(-len(rows) // 8)]
        least, nearest = min((loss(rows[place], sequences), place) for place in best)
        advance(0, f"lowest loss {least:.3f}")
    return rows[nearest][None].float()  # float32, because [V] is trained from here


def new_identifier(session: RunContext, load: LoadBase) -> Identifier:
    """Return new embeddings for [V] and for one token per photo, with the settings of the run."""
    recipe, noun = session.config.model.recipe, session.subject.noun
    codes = photo_codes(session, load)
    on_subject = masked_codes(session, codes, load) or map(torch.ones_like, codes)
    photos = []
    for each, on in zip(codes, on_subject, strict=True):
        # The last view is uncropped, but the crop to the base's image size may have cut the subject off.
        view = on.flatten(1).any(1).nonzero()[-1, 0]
        photos.append((each[view], on[view]))
    return start_identifier(
        load(),
        recipe.identifier,
        prompt=training_prompt(recipe.data.templates[0], noun, class_name=recipe.data.class_name),
        photos=photos,
        generator=torch.Generator().manual_seed(stream_seed(session.config.seed, "identifier")),
        reporter=session.reporter,
        more=[name for adapter in session.make_adapters().values() for name in adapter.tokens],
    )


def photo_codes(session: RunContext, load: LoadBase) -> list[Tensor]:
    """Return the image codes of the photos' crops and copies, cached in the run folder."""
    config, photos = session.config, session.subject.images
    data, seed, flip = config.model.recipe.data, config.seed, config.subject.flip

    def make() -> list[Tensor]:
        with session.reporter.phase("codes of the photos", len(photos), "photos") as advance:
            save_redrawn(session.folder.path / "references", photos, load())
            return encode_photos(load(), photos, data, seed=seed, flip=flip, progress=advance)

    return cached_codes(session.folder.path / "cache" / "photo_codes.safetensors", codes_key(session), make)


def proxy_codes(session: RunContext, load: LoadBase) -> list[Tensor]:
    """Return the image codes of the proxies without random crops, cached; empty without proxies."""
    proxies, path = session.subject.proxies, session.folder.path / "cache" / "proxy_codes.safetensors"

    def make() -> list[Tensor]:
        with session.reporter.phase("codes of the proxies", len(proxies), "proxies") as advance:
            return encode_photos(load(), proxies, DataNumbers(), seed=0, progress=advance)

    return cached_codes(path, codes_key(session), make) if proxies else []


def codes_key(session: RunContext) -> list[Any]:
    """Return everything that the codes of the photos depend on: a cache with another key is made again."""
    config, data = session.config, session.config.model.recipe.data
    return [
        session.subject.fingerprint,
        session.base,
        asdict(session.model_files.layout),
        data.crop,
        data.crops_per_photo,
        data.copies_per_photo,
        data.crop_scale,
        config.seed,
        *(["flip"] if config.subject.flip else []),
    ]


def masked_codes(session: RunContext, pools: Sequence[Tensor], load: LoadBase) -> list[Tensor] | None:
    """Return which codes of the photos are on the subject, cached; None if no photo has a mask."""
    config, masks = session.config, session.subject.masks
    if not masks:
        return None

    def make() -> list[Tensor]:
        data = config.model.recipe.data
        return subject_codes(load(), masks, pools, data, seed=config.seed, flip=config.subject.flip)

    return cached_codes(session.folder.path / "cache" / "photo_masks.safetensors", codes_key(session), make)


def replay_images(session: RunContext, stage: Stage, load: LoadBase) -> Replay | None:
    """Return class images generated by the base (prior preservation), cached; None if the stage uses none."""
    config, prior = session.config, session.config.prior
    prompts = class_prompts(prior, noun=session.subject.noun, live=session.subject.live)
    if stage.numbers.replay_ratio == 0 or prior.kind == "none" or not prompts:
        return None
    seeds = [stream_seed(config.seed, "replay", index) % 2**31 for index in range(prior.images)]

    def make() -> list[Tensor]:
        phase = session.reporter.phase("class images", len(prompts), "images")
        with phase as advance, closing(session.generator(load(), None)) as generator:
            return list(generator.codes(prompts, seeds, advance).cpu())

    key = [prompts, seeds, session.base, asdict(session.model_files.layout), asdict(config.decoder)]
    codes = cached_codes(session.folder.path / "cache" / "class_codes.safetensors", key, make)
    return Replay(
        prompts=tuple(prompt + prior.append for prompt in prompts),
        codes=tuple(codes),
        prompt_dropout=prior.prompt_dropout,
        frozen=tuple(frozen_logits(session, prompts, codes, key, load)) if prior.distills else (),
    )


def frozen_logits(
    session: RunContext, prompts: Sequence[str], codes: Sequence[Tensor], key: list, load: LoadBase
) -> list[Tensor]:
    """Return the base's logits of class images (`class_logits`), cached; `key` determines the codes."""

    def make() -> list[Tensor]:
        with session.reporter.phase("logits of the base", len(prompts), "images") as advance:
            return class_logits(load(), prompts, codes, progress=advance)

    path = session.folder.path / "cache" / "class_logits.safetensors"
    return cached_tensors(path, [*key, session.config.model.dtype], make)


def first_concept(session: RunContext, load: LoadBase) -> Concept:
    """Return the concept from which the first stage starts, with untrained embeddings; cached."""
    # Cached not for speed: all processes, and a resumed run, must start from the same embeddings.
    folder = session.folder.path / "cache" / "start"
    with suppress(FileNotFoundError, ValueError):  # missing, or damaged: it can be computed again
        concept = Concept.load(folder)
        # Until something is learned, the folder may be used with other settings.
        changed = changes(concept.config, concept_settings(session.config))
        same = concept.subject["fingerprint"] == session.subject.fingerprint and concept.base == session.base
        if same and all(name.startswith("model.recipe.stages.") for name in changed):
            return concept
    identifier = new_identifier(session, load)
    concept = session.new_concept("base", tokens=identifier.tokens, rows=identifier.rows.detach().cpu())
    concept.save(folder)
    return concept


def stage_inputs(context: RunContext, stage: Stage) -> StageInputs:
    """Return the inputs of `stage`, computed once; those of the previous stage are freed."""
    if context.inputs.get(stage.name) is None:
        context.inputs.clear()
        context.inputs[stage.name] = prepare(context, stage)
    return context.inputs[stage.name]


def prepare(session: RunContext, stage: Stage) -> StageInputs:
    """Compute the inputs of `stage`, or read them from the run folder."""
    load = cache(lambda: session.load("base")[0])  # the base is loaded at most once, and only if needed
    if stage.start == "base":
        concept = first_concept(session, load)
    else:
        concept = Concept.load(session.folder.concept(stage.start))
        concept.check_base(**session.base)
    codes = photo_codes(session, load)
    return StageInputs(
        concept,
        codes,
        masked_codes(session, codes, load),
        proxy_codes(session, load),
        replay_images(session, stage, load),
    )
