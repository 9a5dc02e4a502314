"""The context of a run: its settings, subject, folder and base, and ways to load the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from personalar.concepts.adapters.base import Adapter
from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.concept import Concept
from personalar.config.fingerprint import concept_settings, learning_settings
from personalar.config.plugins import build
from personalar.config.run_config import RunConfig
from personalar.core.console import Reporter
from personalar.core.process import prepare_torch
from personalar.core.run_folder import RunFolder
from personalar.core.types import PromptSpec, Subject
from personalar.generation.base import Decoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.models.base import Backend
from personalar.models.stored_base import ModelFiles
from personalar.scoring.judges import Judges
from personalar.training.memory import Workload


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Everything that the phases of a run share."""

    config: RunConfig
    subject: Subject
    specs: tuple[PromptSpec, ...]
    folder: RunFolder
    reporter: Reporter
    decoder: Decoder
    scorer: Judges | None
    base: dict[str, str]
    """Name and fingerprint of the base."""
    model_files: ModelFiles
    device: str
    plans: Mapping[str, Workload]
    """The settings with which each stage fits into memory, by stage."""
    sampling: Workload
    """The same for sampling; `sample_batch` images are drawn together."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Inputs of the stage that trains, by its name; see `inputs.stage_inputs`."""
    started: float
    """Start of the run (`time.perf_counter`), minus the seconds of its earlier parts."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
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
        return backend, concept.apply(backend, self.make_adapters())

    def make_adapters(self) -> dict[str, Adapter]:
        """Return fresh adapters of all stages, by name."""
        stages = self.config.method.stages.values()
        return {
            name: build(f"method.stages.*.adapters.{name}", settings)
            for stage in stages
            for name, settings in stage.adapters.items()
        }

    def new_concept(self, stage: str, **learned: Any) -> Concept:
        """Return the concept of `stage`, without the path of the photos, which names people and places."""
        subject = self.subject
        return Concept(
            base=self.base,
            subject={"name": subject.name, "noun": subject.noun, "fingerprint": subject.fingerprint},
            stage=stage,
            config=concept_settings(self.config),
            **learned,
        )

    def generator(self, backend: Backend, identifier: Identifier | None) -> Generator:
        """Return the generator of pictures for this state of the model."""
        if backend.is_cut_up:  # jacobi's passes depend on the picture, and a batch on what memory is free
            plain = PlainDecoder(**asdict(self.decoder.sampling))
            return Generator(backend=backend, decoder=plain, identifier=identifier, batch=None)
        batch = self.sampling.sample_batch
        return Generator(backend=backend, decoder=self.decoder, identifier=identifier, batch=batch)
