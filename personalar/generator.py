"""Prompts in, samples out: backend, decoder and identifier together, with no training framework in sight.

A sample is a function of weights, prompt and seed alone, so what an interrupted run left on disk is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from personalar.identifier import Identifier
from personalar.models.backend import ChameleonBackend
from personalar.models.preprocess import to_uint8
from personalar.png import load_sample, sample_filename, save_sample
from personalar.prompts import sample_prompt
from personalar.types import PromptSpec, Sample, SampleKind

Progress = Callable[[int], None]
"""Called with the number of images that were finished since the last call."""


class Decoder(Protocol):
    """What samples codes; see `personalar.decoding`."""

    def __call__(
        self,
        backend: ChameleonBackend,
        prompts: list[list[int]],
        grid: tuple[int, int],
        seeds: list[int],
        identifier: Identifier | None = None,
    ) -> Tensor:
        """Return codes (B, h, w) for B prompts."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to make: a `Sample` that does not exist yet."""

    stage: str
    prompt: str
    kind: SampleKind
    seed: int
    spec: PromptSpec


def requests_for(
    stage: str,
    specs: Sequence[PromptSpec],
    *,
    seeds: Sequence[int],
    kinds: Sequence[SampleKind],
    noun: str,
    description: str | None,
    class_name: bool = True,
) -> list[Request]:
    """Return every image that `stage` is judged by; descriptions are for the base, which has no [V]."""
    wanted = [kind for kind in kinds if kind != "description" or (stage == "base" and description)]
    return [
        Request(
            stage=stage,
            kind=kind,
            seed=seed,
            spec=spec,
            prompt=sample_prompt(
                spec,
                kind=kind,
                noun=noun,
                description=description,
                learned=stage != "base",
                class_name=class_name,
            ),
        )
        for kind in wanted
        for seed in seeds
        for spec in specs
    ]


def pick_grid_prompts(specs: Sequence[PromptSpec], count: int) -> list[PromptSpec]:
    """Pick `count` prompts for a picture, taking turns between the categories."""
    by_category = [
        list(group) for _, group in groupby(sorted(specs, key=lambda s: s.category), lambda s: s.category)
    ]
    by_category.sort(key=lambda group: specs.index(group[0]))
    turns = [group[k] for k in range(max(map(len, by_category))) for group in by_category if k < len(group)]
    return turns[:count]


class Generator:
    """Makes pictures with one state of the model."""

    def __init__(
        self,
        *,
        backend: ChameleonBackend,
        decoder: Decoder,
        identifier: Identifier | None = None,
        batch: int = 16,
    ) -> None:
        """Sample at the model's own (square) size, `batch` images at a time."""
        self.backend, self.decoder, self.identifier, self.batch = backend, decoder, identifier, batch

    @torch.inference_mode()
    def codes(self, prompts: Sequence[str], seeds: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Return codes (B, h, w), one per prompt and seed."""
        protocol = self.backend.protocol
        side = protocol.config.resolution
        tokens = self.identifier.tokens if self.identifier is not None else None
        ids = [protocol.prompt_ids(prompt, side, side, tokens) for prompt in prompts]
        done: list[Tensor] = []
        for start in range(0, len(ids), self.batch):
            chunk = slice(start, start + self.batch)
            codes = self.decoder(
                self.backend,
                ids[chunk],
                protocol.code_shape(side, side),
                list(seeds[chunk]),
                identifier=self.identifier,
            )
            done.append(codes)
            if progress is not None:
                progress(len(codes))
        return torch.cat(done)

    @torch.inference_mode()
    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Return one picture per prompt and seed."""
        codes = self.codes(prompts, seeds)
        # One by one: convolutions over a batch differ in the last bit, and truncation to bytes would show it.
        pixels = torch.cat([self.backend.decode_images(one) for one in codes.split(1)])  # (B, 3, H, W)
        return [Image.fromarray(array) for array in to_uint8(pixels).cpu().numpy()]

    def samples(self, requests: Sequence[Request]) -> list[Sample]:
        """Make what is asked for; the same prompt and seed is sampled once."""
        unique = list(dict.fromkeys((request.prompt, request.seed) for request in requests))
        pictures = self.images([prompt for prompt, _ in unique], [seed for _, seed in unique])
        made = dict(zip(unique, pictures, strict=True))
        return [Sample(**vars(request), image=made[request.prompt, request.seed]) for request in requests]


def chunks(requests: Sequence[Request], size: int, *, first: Iterable[Request] = ()) -> list[list[Request]]:
    """Cut `requests` into batches of `size`, those of `first` in a batch of their own before all.

    The cut does not depend on what exists already: a resumed run decodes the same batches.
    """
    head = list(first)
    rest = [request for request in requests if request not in head]
    rest.sort(key=lambda request: (request.seed, request.prompt))  # equal prompts of two kinds side by side
    return ([head] if head else []) + [rest[start : start + size] for start in range(0, len(rest), size)]


def _file(request: Request, run_dir: Path) -> Path:
    return run_dir / "images" / request.stage / sample_filename(request.kind, request.prompt, request.seed)


def have_files(requests: Sequence[Request], run_dir: Path) -> bool:
    """Tell whether every picture lies in `run_dir/images`."""
    return all(_file(request, run_dir).is_file() for request in requests)


def generate_files(
    requests: Sequence[Request], generator: Generator | None, run_dir: Path, *, provenance: Mapping[str, str]
) -> list[Sample]:
    """Return the samples of one batch, from `run_dir/images` if all lie there, else made now.

    Args:
        generator: may be None where `have_files`.
    """
    if have_files(requests, run_dir):
        return [load_sample(_file(request, run_dir)) for request in requests]
    assert generator is not None
    return [save_sample(sample, run_dir, provenance=provenance) for sample in generator.samples(requests)]
