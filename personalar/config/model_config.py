"""A base model: where its weights are, and the numbers that suit it. Values: conf/model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from string import Formatter

from omegaconf import MISSING

from personalar.config.fields import limits, one_of
from personalar.config.recipe import RecipeConfig
from personalar.config.trainer_config import ACCELERATORS
from personalar.core.image_sizes import Size, bucket_sizes

PARTS = {"hub": "transformer", "vq_hub": "image tokenizer", "tokenizer_hub": "text tokenizer"}
"""The content of a `ModelConfig`'s repositories, by their setting."""
MOST_GRIDS = 256
"""Largest side in units of a size token: the list of sizes grows with its square."""
LUMINA_PROMPT = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"


@dataclass(kw_only=True)
class ProtocolConfig:
    """The sequence layout's numbers."""

    grid_px: int = field(default=32, metadata=limits(1, 4096))
    """Pixels per unit of a size token."""
    resolution: int = field(default=512, metadata=limits(1, 65536))
    """Side in pixels of the square image, and of the bucket area."""
    buckets: str = "aspect"
    """Image shapes it knows: "square" only, or "aspect": all of Lumina's aspect ratios of that area."""
    structure: str = "rows"
    """"rows": size tokens, and a newline after each row of codes (Lumina-mGPT); "flat": the codes alone, of
    one square size (Chameleon, Anole)."""
    unconditional: str = "image"
    """Tokens before the image in the unconditional context of guidance: "image" (none, Lumina-mGPT),
    "separator" (the prompt's last token, as the SJD code has it) or "bos" (Chameleon)."""
    resize: str = "halving"
    """Scaling of a photo to its size: "halving" (box halvings, then bicubic: Lumina-mGPT) or "lanczos"
    (Chameleon)."""
    prompt_template: str = LUMINA_PROMPT
    """The user's turn, with {width}, {height} and {prompt}."""
    ids: dict[str, int] = field(default_factory=dict, metadata=limits(0))
    """Ids that tokens must have by name; a tokenizer that gives others is refused."""
    known_words: list[str] | None = None
    """Every word of the captions it was trained on: a note names others in a prompt. null: nobody knows."""

    def __post_init__(self) -> None:
        """Raise ValueError for values that cannot be meant."""
        one_of("layout.buckets", self.buckets, ("square", "aspect"))
        one_of("layout.structure", self.structure, ("rows", "flat"))
        one_of("layout.unconditional", self.unconditional, ("image", "separator", "bos"))
        one_of("layout.resize", self.resize, ("halving", "lanczos"))
        if self.structure == "flat" and self.buckets != "square":
            raise ValueError("layout.structure=flat has no size tokens: it needs layout.buckets=square")
        if self.grid_px < 1 or self.resolution < 1 or self.resolution % self.grid_px:
            raise ValueError(
                f"layout.resolution={self.resolution} must be a multiple of layout.grid_px={self.grid_px}"
            )
        if self.resolution // self.grid_px > MOST_GRIDS:
            raise ValueError(
                f"layout.resolution={self.resolution} is too much for layout.grid_px={self.grid_px}; "
                f"allowed: {MOST_GRIDS} times as much"
            )
        if "{prompt}" not in self.prompt_template:
            raise ValueError(f"layout.prompt_template={self.prompt_template!r} must contain {{prompt}}")
        try:
            self.prompt_template.format(width=1, height=1, prompt="")
            fields = [name for _, name, *_ in Formatter().parse(self.prompt_template) if name is not None]
        except (ValueError, LookupError, AttributeError):
            fields = [""]
        if not set(fields) <= {"width", "height", "prompt"}:
            raise ValueError(
                f"layout.prompt_template={self.prompt_template!r} is refused; allowed: {{width}}, {{height}} "
                "and {prompt}"
            )

    @property
    def square(self) -> Size:
        """The base's own size, drawn where none is asked for."""
        return self.resolution, self.resolution

    @property
    def sizes(self) -> list[Size]:
        """All sizes (width, height) in pixels that the base knows."""
        return bucket_sizes(self.resolution, self.grid_px) if self.buckets == "aspect" else [self.square]


def is_commit(revision: str) -> bool:
    """Tell whether `revision` names one state of a repository, and not a branch, which moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@dataclass(kw_only=True)
class SamplingNumbers:
    """The model's sampling defaults; `decoder` takes them by default."""

    cfg_scale: float = field(default=1.0, metadata=limits(0, 1000))
    """Strength of classifier-free guidance; 1: none."""
    top_k: int = field(default=0, metadata=limits(0))
    """0: off."""
    top_p: float = field(default=1.0, metadata=limits(1e-6, 1))
    """Least probability, from the largest, that a code is drawn from; 1: off."""
    temperature: float = field(default=1.0, metadata=limits(0, 1000))
    """Divides the logits; 0: always the likeliest code."""
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
    """Precision of the transformer: float32, bfloat16 or float16."""
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
