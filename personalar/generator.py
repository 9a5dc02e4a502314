"""Prompts in, samples out: backend, decoder and identifier together, with no training framework in sight.

A sample is a function of weights, prompt and seed alone, so what an interrupted run left on disk is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from personalar.batching import Count, Progress, draw_in_batches, largest_batch
from personalar.decoding.sampling import Sampling
from personalar.identifier import Identifier
from personalar.models.backend import ChameleonBackend
from personalar.models.preprocess import to_uint8
from personalar.png import load_sample, sample_filename, save_sample
from personalar.prompt_check import encode_prompts
from personalar.prompts import sample_prompt
from personalar.types import PromptSpec, Sample, SampleKind

Ask = tuple[str, int]
"""Prompt and seed: with the weights, all that a picture depends on."""
Finished = TypeVar("Finished")
PICTURES_AT_ONCE = 4  # decoded from codes together; two suffice to keep a CPU busy, 512 px keep a GPU busy


class Decoder(Protocol):
    """What samples codes; see `personalar.decoding`."""

    sampling: Sampling

    def __call__(
        self,
        backend: ChameleonBackend,
        prompts: list[list[int]],
        grid: tuple[int, int],
        seeds: list[int],
        identifier: Identifier | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
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
        """Sample at the model's own (square) size, at most `batch` images at a time."""
        self.backend, self.decoder, self.identifier, self.batch = backend, decoder, identifier, batch
        # On a CPU both want the same cores, and threads that wait for each other are ten times slower.
        self.overlap = backend.device.type == "cuda"
        """Turn codes into pictures while the next codes are drawn."""

    @torch.inference_mode()
    def codes(self, prompts: Sequence[str], seeds: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Return codes (B, h, w), one per prompt and seed, in batches that fit the free memory."""
        ids, count = self._ids(prompts), Count(progress)

        def draw(part: slice) -> Tensor:
            some = ids[part]
            return self.decoder(
                self.backend,
                some,
                self.grid,
                list(seeds[part]),
                identifier=self.identifier,
                progress=lambda done, total: count.reach(part.start + done * len(some) // total),
            )

        return torch.cat(draw_in_batches(draw, len(ids), self._fitting(ids)))

    @property
    def grid(self) -> tuple[int, int]:
        """Codes (h, w) of a picture."""
        protocol = self.backend.protocol
        return protocol.code_shape(protocol.config.resolution, protocol.config.resolution)

    def fitting_batch(self, prompts: Sequence[str]) -> int:
        """Return how many pictures of `prompts` can be drawn together in the memory that is free now."""
        return self._fitting(self._ids(prompts))

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        tokens = self.identifier.tokens if self.identifier is not None else None
        return encode_prompts(self.backend, prompts, tokens)

    def _fitting(self, ids: list[list[int]]) -> int:
        length = max(map(len, ids), default=0) + len(self.backend.grammar(*self.grid))
        rows = 2 if self.decoder.sampling.guided else 1
        return largest_batch(self.batch, self.backend, rows=rows, length=length)

    @torch.inference_mode()
    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """Turn codes (B, h, w) into pictures, always `PICTURES_AT_ONCE` together.

        A convolution differs in the last bit between batches of other sizes, and truncation to bytes would
        show it; so the last batch is filled up, and a picture does not depend on those beside it.
        """
        missing = -len(codes) % PICTURES_AT_ONCE
        filled = torch.cat((codes, codes[-1:].expand(missing, -1, -1)))
        pixels = [self.backend.decode_images(some) for some in filled.split(PICTURES_AT_ONCE)]
        arrays = [to_uint8(some).cpu().numpy() for some in pixels]
        return [Image.fromarray(array) for some in arrays for array in some][: len(codes)]

    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Return one picture per prompt and seed."""
        return self.pictures(self.codes(prompts, seeds))

    def stream(
        self,
        batches: Iterable[Sequence[Ask]],
        finish: Callable[[Sequence[Ask], list[Image.Image]], Finished],
        progress: Progress | None = None,
    ) -> Iterator[Finished]:
        """Yield `finish(asked, pictures)` of every batch, in order, one batch behind the drawing.

        `finish` (PNG files, say) runs in a thread beside the drawing of the next batch; on a GPU the image
        tokenizer does too, on a stream of its own.
        """
        waiting: deque[Future[Finished]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="pictures") as worker:
            for asked in batches:
                prompts, seeds = zip(*asked, strict=True)
                codes = self.codes(prompts, seeds, progress)
                if self.overlap:
                    waiting.append(worker.submit(self._finish_beside, codes, drawn(codes), asked, finish))
                else:
                    waiting.append(worker.submit(finish, asked, self.pictures(codes)))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _finish_beside(
        self,
        codes: Tensor,
        ready: torch.cuda.Event | None,
        asked: Sequence[Ask],
        finish: Callable[[Sequence[Ask], list[Image.Image]], Finished],
    ) -> Finished:
        """Make pictures on this thread's own stream, after `ready`."""
        if ready is None:  # not a GPU
            return finish(asked, self.pictures(codes))
        stream = torch.cuda.Stream(codes.device)
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            codes.record_stream(stream)
            return finish(asked, self.pictures(codes))

    def samples(self, requests: Sequence[Request]) -> list[Sample]:
        """Make what is asked for; the same prompt and seed is sampled once."""
        asked = unique(requests)
        return as_samples(requests, asked, self.images(*zip(*asked, strict=True)))


def drawn(codes: Tensor) -> torch.cuda.Event | None:
    """Return an event that says when `codes` are drawn; None where there is nothing to wait for."""
    if codes.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def unique(requests: Sequence[Request]) -> list[Ask]:
    """Return what is to be drawn for `requests`: every prompt and seed once."""
    return list(dict.fromkeys((request.prompt, request.seed) for request in requests))


def as_samples(
    requests: Sequence[Request], asked: Sequence[Ask], pictures: Sequence[Image.Image]
) -> list[Sample]:
    """Hand the pictures of `asked` to the requests that asked for them."""
    made = dict(zip(asked, pictures, strict=True))
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
    batches: Sequence[Sequence[Request]],
    generator: Generator | None,
    run_dir: Path,
    *,
    provenance: Mapping[str, str],
    progress: Progress | None = None,
) -> Iterator[list[Sample]]:
    """Yield the samples of every batch, from `run_dir/images` if all lie there, else made now.

    Args:
        generator: may be None where `have_files` of all batches.
    """
    exists = [have_files(batch, run_dir) for batch in batches]
    missing = [batch for batch, found in zip(batches, exists, strict=True) if not found]
    batch_of = iter(missing)

    def save(asked: Sequence[Ask], pictures: list[Image.Image]) -> list[Sample]:
        samples = as_samples(next(batch_of), asked, pictures)
        return [save_sample(sample, run_dir, provenance=provenance) for sample in samples]

    assert generator is not None or not missing
    made = generator.stream(map(unique, missing), save, progress) if generator is not None else iter(())
    for batch, found in zip(batches, exists, strict=True):
        if not found:
            yield next(made)
            continue
        if progress is not None:
            progress(len(batch))
        yield [load_sample(_file(request, run_dir)) for request in batch]
