"""One run at work: its settings, subject and folder, and what every phase does: load, sample, score."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings
from personalar.config.run_config import RunConfig
from personalar.core.console import Reporter
from personalar.core.own_files import RECORD_FILE
from personalar.core.png import save_png
from personalar.core.process import peak_memory_bytes, prepare_torch
from personalar.core.run_folder import RunFolder
from personalar.core.types import PromptSpec, Sample, Subject
from personalar.data.prompts import fill, unrelated_prompts
from personalar.data.references import save_references
from personalar.generation.base import Decoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator, generate_files, have_files
from personalar.generation.requests import Request, check_prompts, chunks, pick_grid_prompts, requests_for
from personalar.models.base import Backend
from personalar.models.stored_base import ModelFiles
from personalar.reports.picture_grid import base_pictures, draw_grid, grid_picture, stack
from personalar.scoring.score_file import merge_scores
from personalar.scoring.subject_scorer import SubjectScorer
from personalar.training.memory import Workload


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every phase of a run needs."""

    config: RunConfig
    subject: Subject
    specs: tuple[PromptSpec, ...]
    folder: RunFolder
    reporter: Reporter
    decoder: Decoder
    scorer: SubjectScorer | None
    base: dict[str, str]
    """Name and fingerprint of the base."""
    model_files: ModelFiles
    device: str
    plans: Mapping[str, Workload]
    """What was picked so that each stage fits, by stage."""
    sampling: Workload
    """The same for sampling; `sample_batch` images are drawn together."""
    started: float
    """When the run began (`time.perf_counter`), less what earlier parts of it took."""

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the result."""
        return learning_settings(self.config)

    @property
    def run_name(self) -> str:
        """For loggers."""
        return f"{self.config.model.name}-{self.subject.name}"

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the base."""
        return getattr(torch, self.config.model.dtype)

    def load_base(self) -> Backend:
        """Return a fresh backend with the base's weights."""
        prepare_torch(self.config.trainer.threads)
        return self.model_files.load(
            dtype=self.dtype, device=self.device, attention=self.config.trainer.attention
        )

    def load(self, stage: str) -> tuple[Backend, Identifier | None]:
        """Return a fresh backend in the state that `stage` left, and its identifier ("base": none)."""
        backend = self.load_base()
        if stage == "base":
            return backend, None
        concept = Concept.load(self.folder.concept(stage))
        concept.check_base(**self.base)
        return backend, concept.apply(backend)

    def new_concept(self, stage: str, **learned: Any) -> Concept:
        """Return what `stage` learned of this run's subject on this run's base, for others to have.

        It does not tell where the photos lie: the path to them names people and places.
        """
        subject, settings = self.subject, self.settings
        return Concept(
            base=self.base,
            subject={"name": subject.name, "noun": subject.noun, "fingerprint": subject.fingerprint},
            stage=stage,
            config={**settings, "subject": {**settings["subject"], "path": None}},
            **learned,
        )

    def generator(self, backend: Backend, identifier: Identifier | None) -> Generator:
        """Return what makes pictures with this state of the model."""
        if backend.is_cut_up:  # jacobi's passes depend on the picture, and a batch on what memory is free
            plain = PlainDecoder(**asdict(self.decoder.sampling))
            return Generator(backend=backend, decoder=plain, identifier=identifier, batch=None)
        batch = self.sampling.sample_batch
        return Generator(backend=backend, decoder=self.decoder, identifier=identifier, batch=batch)

    def requests(self, stage: str) -> list[Request]:
        """Return every picture that `stage` is judged by."""
        samples = self.config.samples
        main = [kind for kind in samples.kinds if kind not in ("prior", "unrelated")]
        wanted: list[tuple[Any, ...]] = [(main, self.specs, samples.seeds)]
        if "prior" in samples.kinds:
            prior = PromptSpec(text="a photo of a {}", category="prior")
            wanted.append((["prior"], [prior], range(samples.prior_images)))
        if "unrelated" in samples.kinds:
            wanted.append((["unrelated"], unrelated_prompts(self.subject.noun), samples.seeds[:1]))
        return [
            request
            for kinds, specs, seeds in wanted
            for request in requests_for(
                stage, specs, seeds=seeds, kinds=kinds, noun=self.subject.noun,
                description=self.subject.description, class_name=self.config.model.recipe.data.class_name,
            )
        ]  # fmt: skip

    def grid_requests(self, stage: str) -> list[Request]:
        """Return the pictures of the grid: the subject in a few prompts, first seed."""
        shown = pick_grid_prompts(self.specs, self.config.samples.num_grid_prompts)
        seed = self.config.samples.seeds[0]
        wanted = [r for r in self.requests(stage) if r.kind == "subject" and r.seed == seed]
        return [request for spec in shown for request in wanted if request.spec == spec]

    def sample(self, stage: str, base_samples: list[Sample]) -> list[Sample]:
        """Make (or find) all pictures of `stage`; the grid comes first and is drawn at once."""
        requests, grid = self.requests(stage), self.grid_requests(stage)
        batches = chunks(requests, self.sampling.sample_batch, first=grid)
        provenance = self.provenance(stage)
        found: list[Sample] = []
        with self.reporter.phase(f"pictures {stage}", len(requests), "images") as advance:
            generator = None if have_files(requests, self.folder.path) else self.generator(*self.load(stage))
            with closing(generator) if generator is not None else nullcontext():
                if generator is not None:
                    prompts = [request.prompt for request in requests]
                    check_prompts(generator, prompts, words=False, say=self.reporter.say)
                files = generate_files(
                    batches, generator, self.folder.path, provenance=provenance, progress=advance
                )
                for index, made in enumerate(files):
                    found += made
                    if index == 0 and grid:
                        self.draw_grid(stage, found[: len(grid)], base_samples or found)
        return found

    def sample_and_score(self, stage: str, base_samples: list[Sample]) -> list[Sample]:
        """Make all pictures of `stage` and judge them."""
        samples = self.sample(stage, base_samples)
        self.score(stage, samples, base_samples)
        self.note_cost()
        return samples

    def provenance(self, stage: str) -> dict[str, str]:
        """Return what every picture says about the model that made it."""
        texts = {"base": f"{self.base['name']} {self.base['fingerprint'][:12]}"}
        if stage != "base":
            record = (self.folder.concept(stage) / RECORD_FILE).read_bytes()
            texts["concept"] = hashlib.sha256(record).hexdigest()[:12]
        return texts

    def note_cost(self) -> None:
        """Put time, memory and device of the run so far into run.json."""
        before = self.folder.record.get("peak_memory_bytes", 0)
        self.folder.update(
            total_seconds=round(time.perf_counter() - self.started, 3),
            peak_memory_bytes=max(before, peak_memory_bytes()),
            device=f"{self.device}, {torch.get_num_threads()} threads",
        )

    def draw_grid(self, stage: str, samples: list[Sample], base_samples: list[Sample]) -> None:
        """Write and announce the grid of a finished stage."""
        before = base_pictures(base_samples)
        title = f"{self.subject.name} on {self.config.model.name}: {stage}"
        picture = grid_picture(
            samples, before, label=f"after {stage}" if stage != "base" else "base", title=title
        )
        path = save_png(picture, self.folder.path / "grids" / f"{stage}.png")
        self.reporter.say(f"grid: {path}")

    def draw_overview(self, samples: Mapping[str, list[Sample]]) -> Path:
        """Write one picture of the whole run: the photos above the same prompts at every stage."""
        shown = {stage: [s for s in found if s.kind == "subject"][: self.config.samples.num_grid_prompts]
                 for stage, found in samples.items()}  # fmt: skip
        columns = max(len(found) for found in shown.values())
        title = f"{self.subject.name} on {self.config.model.name}"
        photos = draw_grid([self.subject.images[:columns]], row_titles=["photos"], title=title)
        titles = [fill(s.spec.text, self.subject.noun) for s in next(iter(shown.values()))]
        rows = [[s.image for s in found] for found in shown.values()]
        pictures = draw_grid(rows, column_titles=titles, row_titles=list(shown))
        return save_png(stack([photos, pictures]), self.folder.path / "grids" / "overview.png")

    def score(self, stage: str, samples: list[Sample], base_samples: list[Sample]) -> None:
        """Judge `samples` and put the lines into scores.jsonl."""
        if self.scorer is None:
            return
        batch = 64
        with self.reporter.phase(f"scores {stage}", len(samples), "images") as advance:
            lines: list[dict[str, Any]] = []
            for start in range(0, len(samples), batch):
                part = samples[start : start + batch]
                lines += self.scorer.score(part)
                advance(len(part))
            lines += self.scorer.side_effects(samples, base_samples)
        merge_scores(self.folder.path / "scores.jsonl", lines)

    def save_references(self) -> None:
        """Write the training photos to `references/`, whole and as the base cuts them."""
        save_references(self.folder.path / "references", self.subject.images, self.model_files.layout)
