"""Generate pictures from prompts with a base, a decoder and the learned embeddings.

In this module a size is (width, height) in pixels and must be one of the base's sizes; None means its square.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.core.image_sizes import Size
from personalar.core.png import is_whole_png, load_sample, sample_filename, save_sample
from personalar.core.types import Sample
from personalar.data.prompts import spell
from personalar.generation.base import Decoder
from personalar.generation.batching import ImagesDone, draw_in_batches, free_bytes, largest_batch
from personalar.generation.requests import (
    PromptAndSeed,
    Request,
    check_length,
    encode_prompts,
    names_of,
    pair_with_images,
    unique,
)
from personalar.models.base import PICTURES_AT_ONCE, Backend
from personalar.models.image_transforms import to_uint8

Finished = TypeVar("Finished")


class Generator:
    """Generates pictures with the current weights of a base model."""

    def __init__(
        self,
        *,
        backend: Backend,
        decoder: Decoder,
        identifier: Identifier | None = None,
        batch: int | None = 16,
        layout: str = "",
    ) -> None:
        """Create a generator.

        Args:
            backend: the base model.
            decoder: samples image codes.
            identifier: learned embeddings, or None for the base alone.
            batch: upper bound on images per batch; reduced to what fits into memory. None samples all
                images at once: processes that share a sharded network must run the same number of passes.
            layout: hash of the base's layout, for the metadata of pictures.
        """
        self.backend, self.decoder, self.identifier, self.batch = backend, decoder, identifier, batch
        self.layout = layout

    @torch.inference_mode()
    def codes(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        progress: ImagesDone | None = None,
        *,
        size: Size | None = None,
        negative_prompt: str | None = None,
    ) -> Tensor:
        """Sample image codes (B, h, w), one image per prompt and seed, in batches that fit into memory."""
        ids, grid, done = self._ids(prompts, size), self.backend.code_shape(size), 0
        context = self.context(negative_prompt, size)

        def report(images: int) -> None:
            nonlocal done
            # A batch that is repeated after an out-of-memory error must not be counted twice.
            if progress is not None and images > done:
                progress(images - done)
            done = max(done, images)

        def draw(part: slice) -> Tensor:
            some = ids[part]
            # Decoders of users need this argument only for a negative prompt.
            more = {} if context is None else {"contexts": [self._with_endings(context, one) for one in some]}
            return self.decoder(
                self.backend,
                some,
                grid,
                list(seeds[part]),
                identifier=self.identifier,
                progress=lambda codes, total: report(part.start + codes * len(some) // total),
                **more,
            )

        smallest = len(ids) if self.batch is None else 1
        at_once = self._fitting(ids, grid, context)
        return torch.cat(draw_in_batches(draw, len(ids), at_once, smallest=smallest))

    def fitting_batch(
        self, prompts: Sequence[str], *, size: Size | None = None, negative_prompt: str | None = None
    ) -> int:
        """Return how many images of `prompts` fit into one batch with the free memory."""
        context = self.context(negative_prompt, size)
        return self._fitting(self._ids(prompts, size), self.backend.code_shape(size), context)

    def context(self, negative_prompt: str | None, size: Size | None = None) -> list[int] | None:
        """Return the token ids of the context of guidance; None: the base's unconditional ones.

        Raises:
            ValueError: the base takes no negative prompt, or it is too long.
        """
        if negative_prompt is None:
            return None
        tokens, words = names_of(self.identifier)
        ids = self.backend.negative_prompt(spell(negative_prompt, words), size, tokens)
        check_length(self.backend, negative_prompt, ids)
        return ids

    def _with_endings(self, context: list[int], prompt: list[int]) -> list[int]:
        """Return `context` with those endings of `prompt` that an unconditional context keeps."""
        kept = self.backend.kept_endings - set(context)
        return [*context, *(index for index in prompt if index in kept)]

    def _ids(self, prompts: Sequence[str], size: Size | None = None) -> list[list[int]]:
        return encode_prompts(self.backend, prompts, self.identifier, size=size)

    def _fitting(self, ids: list[list[int]], grid: tuple[int, int], context: list[int] | None) -> int:
        if self.batch is None:
            return len(ids)
        if self._free is None:
            return self.batch
        length = max(map(len, [*ids, context or []])) + len(self.backend.grammar(*grid))
        rows = 2 if self.decoder.sampling.guided else 1
        # The image tokenizer needs memory too, while a decoder may keep its cache for the next batch.
        free = self._free - self.backend.decode_bytes(PICTURES_AT_ONCE, grid)
        return largest_batch(self.batch, self.backend, free=free, rows=rows, length=length)

    @cached_property
    def _free(self) -> int | None:
        """Free bytes, measured once before the first image, so that all batches have the same size."""
        return free_bytes(self.backend.device)

    def close(self) -> None:
        """Free the decoder's buffers; the next batch allocates them again."""
        self.decoder.forget()

    @torch.inference_mode()
    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """Decode codes (B, h, w) to RGB pictures with the image tokenizer."""
        pictures = []
        for part in codes.split(PICTURES_AT_ONCE):  # so that the pixels of few exist as float32
            pixels = to_uint8(self.backend.decode_images(part)).cpu().numpy()
            pictures += [Image.fromarray(array) for array in pixels]
        return pictures

    def images(self, prompts: Sequence[str], seeds: Sequence[int], **how: Any) -> list[Image.Image]:
        """Sample and decode one picture per prompt and seed; `how` as for `codes`."""
        return self.pictures(self.codes(prompts, seeds, **how))

    def stream(
        self,
        batches: Iterable[Sequence[PromptAndSeed]],
        finish: Callable[[Sequence[PromptAndSeed], list[Image.Image]], Finished],
        progress: ImagesDone | None = None,
        *,
        size: Size | None = None,
        negative_prompt: str | None = None,
    ) -> Iterator[Finished]:
        """Sample batches and yield the result of `finish(pairs, pictures)` for each, in order.

        `finish`, which for example writes PNG files, runs in a thread while the next batch is sampled.
        Results therefore come one batch late.

        Args:
            batches: prompts with their seeds.
            finish: called in order, in one thread.
            progress: called with the number of images sampled since the last call.
            size: see the module.
            negative_prompt: replaces the unconditional context of guidance.
        """
        waiting: deque[Future[Finished]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="pictures") as worker:
            for pairs in batches:
                prompts, seeds = zip(*pairs, strict=True)
                codes = self.codes(prompts, seeds, progress, size=size, negative_prompt=negative_prompt)
                waiting.append(worker.submit(finish, pairs, self.pictures(codes)))
                # One batch may be unfinished: more would keep their pictures in memory.
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def samples(self, requests: Sequence[Request]) -> list[Sample]:
        """Generate the pictures of `requests`; equal prompts with equal seeds are sampled once."""
        pairs = unique(requests)
        return pair_with_images(requests, pairs, self.images(*zip(*pairs, strict=True)))


def _file(request: Request, run_dir: Path) -> Path:
    return run_dir / "images" / request.stage / sample_filename(request.kind, request.prompt, request.seed)


def have_files(requests: Sequence[Request], run_dir: Path) -> bool:
    """Return True if `run_dir`/images contains an intact PNG file for every request."""
    return all(is_whole_png(_file(request, run_dir)) for request in requests)


def generate_files(
    batches: Sequence[Sequence[Request]],
    generator: Generator | None,
    run_dir: Path,
    *,
    provenance: Mapping[str, str],
    progress: ImagesDone | None = None,
) -> Iterator[list[Sample]]:
    """Yield the samples of every batch: loaded from `run_dir`/images if all are there, otherwise generated.

    A batch with a missing picture is generated completely, so that a resumed run uses the same batches as an
    uninterrupted one and gives bit-identical pictures.

    Args:
        batches: requests, in the batches in which they are sampled.
        generator: may be None if `have_files` is true for all batches.
        run_dir: the run's folder.
        provenance: text chunks for the PNG files.
        progress: called with the number of pictures that are done since the last call.
    """
    missing = [batch for batch in batches if not have_files(batch, run_dir)]
    batch_of = iter(missing)

    def save(pairs: Sequence[PromptAndSeed], pictures: list[Image.Image]) -> list[Sample]:
        samples = pair_with_images(next(batch_of), pairs, pictures)
        return [save_sample(sample, run_dir, provenance=provenance) for sample in samples]

    assert generator is not None or not missing
    made = generator.stream(map(unique, missing), save, progress) if generator is not None else iter(())
    for batch in batches:
        if batch in missing:
            yield next(made)
            continue
        if progress is not None:
            progress(len(batch))
        yield [load_sample(_file(request, run_dir)) for request in batch]
