"""Expected time of a run of a large base on a CPU, from a short measurement before it starts.

The passes of training and sampling run through a few blocks of the network only, and the result is scaled to
all of them. Small bases are not measured: their whole run takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from personalar.config.run_config import Stage
from personalar.generation.generator import have_files
from personalar.models.base import Backend
from personalar.reports.score_table import duration
from personalar.runs.pictures import all_requests, grid_requests
from personalar.training.context import RunContext

LARGE_BYTES = 10**9
"""Weights of a base from which on a CPU run is worth a measurement."""
BLOCKS = 2
"""Blocks that a measured pass runs through: all blocks of a base take about the same time."""
TOKENS = 128
"""Tokens of the measured training pass: enough for full speed of the matrix products."""
ROWS = 2
"""Rows of a sampling pass: with and without the prompt."""


class _Stop(Exception):
    """Ends a forward pass early."""


@contextmanager
def first_blocks(backend: Backend) -> Iterator[list[Tensor]]:
    """End the forward pass in the body after `BLOCKS` blocks; yield the list of their outputs."""
    outputs: list[Tensor] = []

    def after(module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        outputs.append(output)
        if len(outputs) == BLOCKS:
            raise _Stop

    hooks = [block.register_forward_hook(after) for block in backend.blocks]
    try:
        yield outputs
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def sampling_seconds(backend: Backend) -> float:
    """Return the seconds of one sampling pass: one token for each of two rows, through all blocks."""
    embeds = backend.embed(torch.full((ROWS, 1), backend.pad_id, device=backend.device))
    for _ in range(2):  # the first pass reads the weights from the disk, so the second one counts
        started = time.perf_counter()
        with torch.no_grad(), first_blocks(backend) as outputs:
            backend.forward(embeds)
    return (time.perf_counter() - started) / len(outputs) * len(backend.blocks)


def training_seconds(backend: Backend) -> float:
    """Return the seconds per token of a forward and backward pass through all blocks."""
    ids = torch.full((1, TOKENS), backend.pad_id, device=backend.device)
    # The weights are frozen, so without a gradient of the embeddings there would be no backward pass.
    embeds = backend.embed(ids).detach().requires_grad_()
    started = time.perf_counter()
    with torch.enable_grad(), first_blocks(backend) as outputs:
        backend.forward(embeds)
    outputs[-1].float().sum().backward()
    return (time.perf_counter() - started) / len(outputs) * len(backend.blocks) / TOKENS


def pictures_left(session: RunContext, stage: str) -> int:
    """Return how many pictures of `stage` are still to be sampled.

    Requests with the same prompt and seed are sampled once, and `pictures.unchanged` copies what a stage that
    learns nothing but embeddings does not change.
    """
    requests = all_requests(session, stage)
    names = list(session.config.method.stages)
    so_far = names[: names.index(stage) + 1] if stage != "base" else []
    if so_far and not any(session.config.method.stages[name].changes_network for name in so_far):
        requests = [request for request in requests if request.kind == "subject"]
    missing = [request for request in requests if not have_files([request], session.folder.path)]
    return len({(request.prompt, request.seed) for request in missing})


def grid_seconds(session: RunContext, stage: Stage, steps: int, *, step: float, picture: float) -> float:
    """Return the seconds of the sample grids in `steps` steps; those beyond their time share are skipped."""
    samples = session.config.samples
    if samples.grid_every_steps == 0:
        return 0.0
    grids = picture * len(grid_requests(session, stage.name)) * (steps // samples.grid_every_steps)
    if session.config.selection.scorer.scores or samples.time_share == 1:
        return grids
    return min(grids, step * steps * samples.time_share / (1 - samples.time_share))


def lines(session: RunContext, stages: list[Stage], backend: Backend) -> list[str]:
    """Return lines with the time of a picture, of a step of each stage, and of all that is left to do.

    Pictures are an upper bound, because batches and Jacobi decoding need fewer passes. Their scores, and what
    is computed from the photos and class images before training, are left out.
    """
    height, width = backend.code_shape()
    picture = sampling_seconds(backend) * len(backend.grammar(height, width))
    per_token = training_seconds(backend)
    prompt = backend.prompt_ids("a photo of a thing")
    tokens = len(prompt) + len(backend.grammar(height, width))
    total, said = 0.0, []
    config, folder = session.config, session.folder
    for name in ["base", *(stage.name for stage in stages)]:
        # A resumed run has some of its pictures and steps already.
        total += picture * pictures_left(session, name)
    if any(stage.numbers.replay_ratio for stage in stages) and config.prior.kind != "none":
        cached = (folder.path / "cache" / "class_codes.safetensors").is_file()
        total += 0 if cached else picture * config.prior.images
    for stage in stages:
        step = per_token * tokens * stage.numbers.sequences
        left = stage.numbers.steps - folder.checkpoint_of(stage.name).get("step", 0)
        total += step * left + grid_seconds(session, stage, left, step=step, picture=picture)
        said.append(f"a step of stage {stage.name} {duration(step)} (of {stage.numbers.steps} steps)")
    return [
        f"time on this CPU, measured: a picture at most {duration(picture)}, {', '.join(said)}",
        f"in total about {duration(total)}; shorter with fewer steps "
        "(model.recipe.stages.NAME.steps) and pictures (samples.prompts, samples.kinds, samples.seeds); "
        "Ctrl-C saves, and the same command resumes",
    ]


def note_time(session: RunContext, stages: list[Stage]) -> None:
    """Print the expected time that is left of a run on a CPU with a large base."""
    undone = [stage for stage in stages if not session.folder.has_concept(stage.name)]
    weights = sum(path.stat().st_size for path in session.model_files.weights())
    if session.config.trainer.accelerator != "cpu" or weights < LARGE_BYTES or not undone:
        return
    backend = session.load_base()
    for line in lines(session, undone, backend):
        session.reporter.say(line)
