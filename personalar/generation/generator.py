"""Prompts in, pictures out: backend, decoder and identifier together.

A size is (width, height) in pixels, one of the base's; None is its square.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.core.image_sizes import Size
from personalar.core.png import is_whole_png, load_sample, sample_filename, save_sample
from personalar.core.types import Sample
from personalar.generation.base import Decoder
from personalar.generation.batching import (
    PICTURES_AT_ONCE,
    Progress,
    draw_in_batches,
    free_bytes,
    largest_batch,
)
from personalar.generation.requests import Ask, Request, as_samples, encode_prompts, unique
from personalar.models.base import Backend
from personalar.models.image_transforms import to_uint8

Finished = TypeVar("Finished")


class Generator:
    """Makes pictures with one state of the model."""

    def __init__(
        self,
        *,
        backend: Backend,
        decoder: Decoder,
        identifier: Identifier | None = None,
        batch: int | None = 16,
    ) -> None:
        """Draw at most `batch` images at a time.

        None: all together, whatever memory is free; processes that share a network must run equally many
        passes.
        """
        self.backend, self.decoder, self.identifier, self.batch = backend, decoder, identifier, batch
        self.overlap = backend.device.type == "cuda"  # on a CPU both would compete for the same cores
        """Turn codes into pictures while the next codes are drawn."""
        self._drawing = Lock()

    @torch.inference_mode()
    def codes(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        progress: Progress | None = None,
        *,
        size: Size | None = None,
    ) -> Tensor:
        """Return codes (B, h, w), one per prompt and seed, in batches that fit the free memory."""
        ids, grid, done = self._ids(prompts, size), self.backend.code_shape(size), 0

        def reach(images: int) -> None:
            nonlocal done
            if progress is not None and images > done:  # a batch that is begun again counts once
                progress(images - done)
            done = max(done, images)

        def draw(part: slice) -> Tensor:
            some = ids[part]
            return self.decoder(
                self.backend,
                some,
                grid,
                list(seeds[part]),
                identifier=self.identifier,
                progress=lambda codes, total: reach(part.start + codes * len(some) // total),
            )

        with self._drawing:
            smallest = len(ids) if self.batch is None else 1
            at_once = self._fitting(ids, grid)
            return torch.cat(draw_in_batches(draw, len(ids), at_once, smallest=smallest))

    def fitting_batch(self, prompts: Sequence[str], *, size: Size | None = None) -> int:
        """Return how many pictures of `prompts` can be drawn together in the memory that is free now."""
        return self._fitting(self._ids(prompts, size), self.backend.code_shape(size))

    def _ids(self, prompts: Sequence[str], size: Size | None = None) -> list[list[int]]:
        tokens = self.identifier.tokens if self.identifier is not None else None
        return encode_prompts(self.backend, prompts, tokens, size=size)

    def _fitting(self, ids: list[list[int]], grid: tuple[int, int]) -> int:
        if self.batch is None:
            return len(ids)
        if self._free is None:
            return self.batch
        length = max(map(len, ids), default=0) + len(self.backend.grammar(*grid))
        rows = 2 if self.decoder.sampling.guided else 1
        free = self._free - self.backend.decode_bytes(PICTURES_AT_ONCE, grid)  # beside the drawing
        return largest_batch(self.batch, self.backend, free=free, rows=rows, length=length)

    @cached_property
    def _free(self) -> int | None:
        """Free bytes before the first picture, None if unknown; later they vary, and batches would too."""
        return free_bytes(self.backend.device)

    def close(self) -> None:
        """Free what the decoder keeps from batch to batch; the next batch makes it anew."""
        self.decoder.forget()

    @torch.inference_mode()
    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """Turn codes (B, h, w) into pictures, always `PICTURES_AT_ONCE` together: the last are filled up.

        A convolution differs in the last bit between batch sizes, and truncation to bytes would show it.
        """
        missing = -len(codes) % PICTURES_AT_ONCE
        filled = torch.cat((codes, codes[-1:].expand(missing, -1, -1)))
        pixels = [self.backend.decode_images(some) for some in filled.split(PICTURES_AT_ONCE)]
        arrays = [to_uint8(some).cpu().numpy() for some in pixels]
        return [Image.fromarray(array) for some in arrays for array in some][: len(codes)]

    def images(
        self, prompts: Sequence[str], seeds: Sequence[int], *, size: Size | None = None
    ) -> list[Image.Image]:
        """Return one picture per prompt and seed."""
        return self.pictures(self.codes(prompts, seeds, size=size))

    def stream(
        self,
        batches: Iterable[Sequence[Ask]],
        finish: Callable[[Sequence[Ask], list[Image.Image]], Finished],
        progress: Progress | None = None,
        *,
        size: Size | None = None,
    ) -> Iterator[Finished]:
        """Yield `finish(asked, pictures)` of every batch, in order, one batch behind the drawing.

        `finish` (PNG files, say) runs in a thread beside the drawing of the next batch; on a GPU the image
        tokenizer does too, on a CUDA stream of its own.
        """
        waiting: deque[Future[Finished]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="pictures") as worker:
            for asked in batches:
                prompts, seeds = zip(*asked, strict=True)
                codes = self.codes(prompts, seeds, progress, size=size)
                if self.overlap:
                    drawn = torch.cuda.current_stream().record_event() if codes.is_cuda else None
                    waiting.append(worker.submit(self._finish_beside, codes, drawn, asked, finish))
                else:
                    waiting.append(worker.submit(finish, asked, self.pictures(codes)))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _finish_beside(
        self,
        codes: Tensor,
        drawn: torch.cuda.Event | None,
        asked: Sequence[Ask],
        finish: Callable[[Sequence[Ask], list[Image.Image]], Finished],
    ) -> Finished:
        """Make pictures in this thread: on a GPU on its own stream, after the event `drawn`."""
        if drawn is None:
            return finish(asked, self._pictures_beside(codes))
        stream = picture_stream(codes.device)
        with torch.cuda.stream(stream):
            stream.wait_event(drawn)
            codes.record_stream(stream)
            return finish(asked, self._pictures_beside(codes))

    def _pictures_beside(self, codes: Tensor) -> list[Image.Image]:
        """Turn codes into pictures; if the drawing leaves too little memory for that, after it."""
        try:
            return self.pictures(codes)
        except torch.OutOfMemoryError:
            pass  # only below, the tensors that the exception holds are gone
        with self._drawing:
            torch.cuda.empty_cache()
            return self.pictures(codes)

    def samples(self, requests: Sequence[Request]) -> list[Sample]:
        """Draw `requests`; the same prompt and seed is drawn once."""
        asked = unique(requests)
        return as_samples(requests, asked, self.images(*zip(*asked, strict=True)))


@cache
def picture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which codes become pictures: one, as each keeps the memory that it once used."""
    return torch.cuda.Stream(device)


def _file(request: Request, run_dir: Path) -> Path:
    return run_dir / "images" / request.stage / sample_filename(request.kind, request.prompt, request.seed)


def have_files(requests: Sequence[Request], run_dir: Path) -> bool:
    """Tell whether every picture lies in `run_dir/images`; a damaged one does not count."""
    return all(is_whole_png(_file(request, run_dir)) for request in requests)


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
    missing = [batch for batch in batches if not have_files(batch, run_dir)]
    batch_of = iter(missing)

    def save(asked: Sequence[Ask], pictures: list[Image.Image]) -> list[Sample]:
        samples = as_samples(next(batch_of), asked, pictures)
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
