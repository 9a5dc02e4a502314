"""The context of a run: its settings, subject, folder and base, and methods that load the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from personalar.concepts.adapters.base import Adapter
from personalar.concepts.adapters.identifier import Identifier, assign_tokens
from personalar.concepts.concept import Concept
from personalar.config.fingerprint import concept_settings
from personalar.config.plugins import build
from personalar.config.run_config import RunConfig
from personalar.core.console import Reporter
from personalar.core.process import prepare_torch
from personalar.core.run_folder import RunFolder
from personalar.core.types import PromptSpec, Subject
from personalar.data.prompts import SUBJECT_TOKEN, image_token_names, row_names, word_of
from personalar.generation.base import Decoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.models.base import Backend
from personalar.models.stored_base import ModelFiles
from personalar.scoring.judges import Judges
from personalar.training.memory import Workload


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Everything that training, sampling and scoring of one run have in common."""

    config: RunConfig
    subject: Subject
    specs: tuple[PromptSpec, ...]
    folder: RunFolder
    reporter: Reporter
    decoder: Decoder
    scorer: Judges | None
    selector: Judges | None
    """Scorers that select a step of each stage; None: the last step is kept."""
    base: dict[str, str]
    """"name" and "fingerprint" of the base."""
    model_files: ModelFiles
    device: str
    plans: Mapping[str, Workload]
    """Memory settings with which each stage fits on the device, by stage name."""
    sampling: Workload
    """The same for sampling; `sample_batch` is the number of images per batch."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Cache of `inputs.stage_inputs`: the inputs of the current stage by its name."""
    started: float
    """Start of the run (`time.perf_counter`), minus the seconds of earlier, interrupted parts."""

    def load_base(self) -> Backend:
        """Return a new backend with the base's weights on `device`."""
        prepare_torch(self.config.trainer.threads)
        return self.model_files.load(dtype=getattr(torch, self.config.model.dtype), device=self.device)

    def load(self, stage: str) -> tuple[Backend, Identifier | None]:
        """Return a new backend in its state after `stage`, and the identifier (None for "base").

        The concept has the strength `samples.strength`.

        Raises:
            ValueError: the concept is damaged or belongs to another base.
        """
        backend = self.load_base()
        if stage == "base":
            return backend, None
        concept = Concept.load(self.folder.concept(stage))
        # A folder can be copied to a machine with another version of the base.
        concept.check_base(**self.base)
        strength = self.config.samples.strength
        return backend, concept.apply(backend, self.make_adapters(), strength=strength)

    def make_adapters(self) -> dict[str, Adapter]:
        """Return new adapters of all stages, by name; they are not attached yet."""
        made = {}
        for stage in self.config.method.stages.values():
            for name, settings in stage.adapters.items():
                made[name] = build(f"method.stages.*.adapters.{name}", settings)
        return made

    def check_tokens(self) -> None:
        """Check the learned tokens before anything is generated.

        Raises:
            ValueError: an adapter cannot be created, the base has too few reserved ids, or `prior.append` is
                not a learned token.
        """
        own = [name for adapter in self.make_adapters().values() for name in adapter.tokens]
        rows, photos = self.config.model.recipe.identifier.rows, len(self.subject.images)
        names = [*row_names(SUBJECT_TOKEN, rows), *image_token_names(photos), *dict.fromkeys(own)]
        assign_tokens(names, self.model_files.reserved_ids())
        append = self.config.prior.append
        if self.config.has_prior and append not in ("", *names):
            raise ValueError(
                f"prior.append={append!r} is not a learned token of method={self.config.method.name}; "
                f"allowed: {', '.join(names)}, or prior.append=''"
            )

    def new_concept(self, stage: str, **learned: Any) -> Concept:
        """Return the concept of `stage`.

        Args:
            learned: the fields of `Concept` with tensors: tokens, rows, weights and so on.
        """
        subject = self.subject
        # Without the path of the photos: concepts are shared, and paths contain names of people and places.
        return Concept(
            base=self.base,
            subject={
                "name": subject.name,
                "noun": subject.noun,
                "fingerprint": subject.fingerprint,
                "word": word_of(subject.name),
            },
            stage=stage,
            config=concept_settings(self.config),
            **learned,
        )

    def generator(self, backend: Backend, identifier: Identifier | None) -> Generator:
        """Return a picture generator for this state of the model."""
        if backend.is_sharded:
            # Under ZeRO 3 all processes must make the same number of forward passes. With Jacobi decoding it
            # depends on the picture, and with an automatic batch size on the free memory.
            plain = PlainDecoder(**asdict(self.decoder.sampling))
            return Generator(backend=backend, decoder=plain, identifier=identifier, batch=None)
        batch = self.sampling.sample_batch
        return Generator(backend=backend, decoder=self.decoder, identifier=identifier, batch=batch)
