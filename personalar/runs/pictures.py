"""The pictures of a run: sample them, score them, and draw grids."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from personalar.concepts.validation import read_record
from personalar.core.image_sizes import written
from personalar.core.own_files import RECORD_FILE, ROWS_FILE
from personalar.core.png import save_png, save_sample
from personalar.core.process import peak_memory_bytes
from personalar.core.types import Sample
from personalar.data.prompts import class_prompt, prior_prompt, unrelated_prompts
from personalar.generation.chosen_concepts import short_hash
from personalar.generation.generator import generate_files, have_files
from personalar.generation.provenance import drawing_settings
from personalar.generation.requests import Request, check_prompts, chunks, pick_grid_prompts, requests_for
from personalar.reports.picture_grid import base_pictures, draw_grid, grid_picture
from personalar.scoring.score_file import merge_scores
from personalar.training.context import RunContext


def all_requests(session: RunContext, stage: str) -> list[Request]:
    """Return the requests for all pictures of `stage`, of every kind in `samples.kinds`."""
    samples = session.config.samples
    # Diversity needs one prompt with many seeds, drift only one seed per prompt.
    main = [kind for kind in samples.kinds if kind not in ("prior", "unrelated")]
    wanted: list[tuple[Any, ...]] = [(main, session.specs, samples.seeds)]
    if "prior" in samples.kinds:
        wanted.append((["prior"], [prior_prompt(session.subject.noun)], range(samples.prior_images)))
    if "unrelated" in samples.kinds:
        wanted.append((["unrelated"], unrelated_prompts(session.subject.noun), samples.seeds[:1]))
    # The order is that of sampling: the subject first, which users wait for.
    requests: list[Request] = []
    for kinds, specs, seeds in wanted:
        requests += requests_for(
            stage,
            specs,
            seeds=seeds,
            kinds=kinds,
            noun=session.subject.noun,
            description=session.subject.description,
            class_name=session.config.model.recipe.data.class_name,
        )
    return requests


def grid_requests(session: RunContext, stage: str) -> list[Request]:
    """Return the requests for the sample grid: the subject in a few prompts, with the first seed."""
    shown = pick_grid_prompts(session.specs, session.config.samples.num_grid_prompts)
    seed = session.config.samples.seeds[0]
    wanted = [r for r in all_requests(session, stage) if r.kind == "subject" and r.seed == seed]
    return [request for spec in shown for request in wanted if request.spec == spec]


def sample(session: RunContext, stage: str, base_samples: list[Sample]) -> list[Sample]:
    """Return all pictures of `stage`; those that are missing in the run folder are sampled.

    Args:
        base_samples: the base's pictures, to show in the grid; empty for the base itself.
    """
    requests, grid = all_requests(session, stage), grid_requests(session, stage)
    made_by = provenance(session, stage)
    found = unchanged(session, stage, requests, base_samples, made_by)
    kept = {(sample.kind, sample.prompt, sample.seed) for sample in found}
    requests = [request for request in requests if (request.kind, request.prompt, request.seed) not in kept]
    # The grid is the first batch, so that it can be looked at while the others are sampled.
    batches = chunks(requests, session.sampling.sample_batch, first=grid)
    with session.reporter.phase(f"pictures {stage}", len(requests), "images") as advance:
        generator = None
        with ExitStack() as stack:
            if not have_files(requests, session.folder.path):  # otherwise the model need not be loaded
                generator = stack.enter_context(closing(session.generator(*session.load(stage))))
                prompts = [request.prompt for request in requests]
                check_prompts(generator, prompts, words=False, say=session.reporter.say)
            files = generate_files(
                batches, generator, session.folder.path, provenance=made_by, progress=advance
            )
            for index, made in enumerate(files):
                found += made
                # The base has no earlier pictures to compare with, only its own.
                if index == 0 and grid:
                    shown = made[: len(grid)]
                    draw_stage_grid(session, stage, shown, base_samples or shown)
    return found


def unchanged(
    session: RunContext,
    stage: str,
    requests: Sequence[Request],
    base_samples: Sequence[Sample],
    made_by: Mapping[str, str],
) -> list[Sample]:
    """Return the pictures of `requests` that a stage cannot change, copied from those of the base.

    A stage that learned nothing but embeddings generates prompts without them as the base does.
    """
    if stage == "base" or set(read_record(session.folder.concept(stage))["files"]) != {ROWS_FILE}:
        return []
    known = {(sample.kind, sample.prompt, sample.seed): sample for sample in base_samples}
    found = []
    for request in requests:
        same = known.get((request.kind, request.prompt, request.seed))
        if request.kind != "subject" and same is not None:
            copy = Sample(**vars(request), image=same.image)
            found.append(save_sample(copy, session.folder.path, provenance=made_by))
    return found


def sample_and_score(session: RunContext, stage: str, base_samples: list[Sample]) -> list[Sample]:
    """Return all pictures of `stage`, and write their scores to scores.jsonl."""
    samples = sample(session, stage, base_samples)
    score(session, stage, samples)
    note_cost(session)
    return samples


def provenance(session: RunContext, stage: str) -> dict[str, str]:
    """Return the PNG metadata about the model and the sampling settings, for all pictures of `stage`."""
    config = session.config
    texts = drawing_settings(config.decoder.settings, dtype=config.model.dtype, device=session.device)
    texts |= {
        "size": written(session.model_files.layout.square),
        "base": f"{session.base['name']} {session.base['fingerprint'][:12]}",
    }
    if stage != "base":
        # The record contains the hashes of all files of the concept.
        texts["concept"] = short_hash((session.folder.concept(stage) / RECORD_FILE).read_bytes())
        if config.samples.strength != 1:
            texts["strength"] = str(config.samples.strength)
    return texts


def note_cost(session: RunContext) -> None:
    """Write time, peak memory and device of the run so far to run.json."""
    # A resumed run has a new process, whose own peak may be lower.
    before = session.folder.record.get("peak_memory_bytes", 0)
    threads = torch.get_num_threads()
    session.folder.update(
        total_seconds=round(time.perf_counter() - session.started, 3),
        peak_memory_bytes=max(before, peak_memory_bytes()),
        device=f"{session.device}, {threads} thread{'s' if threads > 1 else ''}",
    )


def draw_stage_grid(
    session: RunContext, stage: str, samples: list[Sample], base_samples: list[Sample]
) -> None:
    """Write the grid of a finished stage, and print its path."""
    before = base_pictures(base_samples)
    title = f"{session.subject.name} on {session.config.model.name}: {stage}"
    picture = grid_picture(
        samples, before, label=f"after {stage}" if stage != "base" else "base", title=title
    )
    path = save_png(picture, session.folder.path / "grids" / f"{stage}.png")
    session.reporter.say(f"grid: {path}")


def draw_overview(session: RunContext, samples: Mapping[str, list[Sample]]) -> Path:
    """Write one picture of the run, the same prompts at every stage above the photos; return its path."""
    shown = {}
    for stage, found in samples.items():
        pictures_of_subject = [sample for sample in found if sample.kind == "subject"]
        shown[stage] = pictures_of_subject[: session.config.samples.num_grid_prompts]
    titles = [class_prompt(s.spec.text, session.subject.noun) for s in next(iter(shown.values()))]
    photos = session.subject.images[: len(titles)]
    rows: list[list[Image | None]] = [[s.image for s in found] for found in shown.values()]
    rows.append([*photos, *[None] * (len(titles) - len(photos))])
    title = f"{session.subject.name} on {session.config.model.name}"
    grid = draw_grid(rows, column_titles=titles, row_titles=[*shown, "photos"], title=title)
    return save_png(grid, session.folder.path / "grids" / "overview.png")


def score(session: RunContext, stage: str, samples: list[Sample]) -> None:
    """Score `samples` and merge the lines into scores.jsonl; does nothing without scorers."""
    if session.scorer is None:
        return
    with session.reporter.phase(f"scores {stage}", len(samples), "images") as advance:
        lines = session.scorer.score(samples, advance)
    merge_scores(session.folder.path / "scores.jsonl", lines)
