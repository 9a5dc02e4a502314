"""A base model: where its weights are, and the numbers that suit it. Values: conf/model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from personalar.config.fields import limits, one_of
from personalar.config.layout import ProtocolConfig
from personalar.config.recipe import RecipeConfig
from personalar.config.trainer_config import ACCELERATORS

PARTS = {"hub": "transformer", "vq_hub": "image tokenizer", "tokenizer_hub": "text tokenizer"}
"""The content of a `ModelConfig`'s repositories, by their setting."""


def is_commit(revision: str) -> bool:
    """Tell whether `revision` names one state of a repository, and not a branch, which moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@dataclass(kw_only=True)
class SamplingNumbers:
    """The model's sampling defaults; `decoder` takes them by default."""

    cfg_scale: float = field(default=1.0, metadata=limits(0, 1000))
    top_k: int = field(default=0, metadata=limits(0))
    """0: off."""
    top_p: float = field(default=1.0, metadata=limits(1e-6, 1))
    temperature: float = field(default=1.0, metadata=limits(0, 1000))
    batch: int = field(default=16, metadata=limits(1))
    """Images decoded together. An image does not depend on it."""


@dataclass(kw_only=True)
class HubFiles:
    """Files of one Hugging Face repository, and what to know before they are downloaded."""

    repo: str = MISSING
    """owner/name."""
    revision: str = "main"
    """Commit or branch; "main" is whatever the repository holds that day."""
    licence: str = MISSING
    """One line; the repository's page has the text to accept."""
    files: list[str] = field(default_factory=list)
    """Names or patterns of what is needed."""
    gigabytes: float = field(default=MISSING, metadata=limits(0))
    """About how much that is, in 1e9 bytes."""


@dataclass(kw_only=True)
class ModelConfig:
    """A base model: where its weights are and what suits it."""

    name: str = MISSING
    family: str = "personalar.models.chameleon"
    """Package of the model's class; see docs/adding_a_backend.md."""
    path: str | None = None
    """Folder of weights; "package://x" is inside the installed package; null: from `hub`."""
    vq_path: str | None = None
    """Folder of the image tokenizer, where it is not in `path`; null: there, or from `vq_hub`."""
    hub: HubFiles | None = None
    vq_hub: HubFiles | None = None
    tokenizer_hub: HubFiles | None = None
    """Repositories of the image and of the text tokenizer, where the model's has none."""
    layout: ProtocolConfig | None = None
    """Image sizes and sequence layout; null: what `protocol.json` in the folder says."""
    dtype: str = "float32"
    float16_problem: str | None = None
    """Why dtype=float16 is refused; null: it is not."""
    accelerator: str = "cpu"
    """The choice of trainer=auto: "cpu", "gpu", or "auto", a GPU if torch sees one."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    sampling: SamplingNumbers = field(default_factory=SamplingNumbers)
    photo_warning: str | None = None
    """Said when the subject is real photographs."""

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        if self.dtype == "float16" and self.float16_problem:
            raise ValueError(
                f"model.dtype=float16 is refused for model={self.name}: {self.float16_problem}; choose "
                "model.dtype=bfloat16, or float32, which takes twice the memory"
            )
        one_of("model.accelerator", self.accelerator, ACCELERATORS)
        if self.path is None and self.hub is None:
            raise ValueError(f"model={self.name} says nowhere where its weights are: set model.path=DIR")
