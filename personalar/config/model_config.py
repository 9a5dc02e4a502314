"""Settings of a base model (conf/model) and of the decoder that samples from it (conf/decoder)."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from string import Formatter
from typing import Any

from omegaconf import II, MISSING

from personalar.config.fields import limits, one_of
from personalar.config.recipe import RecipeConfig
from personalar.config.trainer_config import ACCELERATORS
from personalar.core.image_sizes import Size, area_sizes, bucket_sizes

PARTS = {"hub": "transformer", "vq_hub": "image tokenizer", "tokenizer_hub": "text tokenizer"}
"""Setting of each repository in `ModelConfig` -> what it contains."""
MOST_GRIDS = 256
"""Largest side in units of `grid_px`; a limit, because the list of sizes grows with its square."""
SHAPES = {"aspect": bucket_sizes, "area": area_sizes}
LUMINA_PROMPT = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"


@dataclass(kw_only=True)
class ProtocolConfig:
    """Image sizes and token sequence of a base model."""

    grid_px: int = field(default=32, metadata=limits(1, 4096))
    """Pixels per unit of a size token."""
    resolution: int = field(default=512, metadata=limits(1, 65536))
    """Side of the square image in pixels; images of other shapes have about the same area."""
    buckets: str = "aspect"
    """Supported image shapes: "square" only, "aspect" (all aspect ratios of Lumina-mGPT), or "area" (both
    sides rounded to the grid: Emu3)."""
    structure: str = "rows"
    """"rows": sizes before the image, and a token after each row of codes (Lumina-mGPT, Emu3); "flat": the
    codes alone, of one square size (Chameleon, Anole, Janus). A family supports only some values."""
    unconditional: str = "image"
    """What replaces the prompt in the unconditional context of guidance: "image" (nothing: Lumina-mGPT),
    "separator" (the prompt's last token, as in the code of SJD), "bos" (BOS: Chameleon), "pad" (BOS, then
    padding up to the length of the prompt: Janus) or "negative" (`negative_prompt`: Emu3)."""
    negative_prompt: str = ""
    """Text of the unconditional context with unconditional=negative."""
    resize: str = "halving"
    """Scaling of a photo to its size: "halving" (box halvings, then bicubic: Lumina-mGPT), "lanczos"
    (Chameleon), "cover" (bicubic in one step: Janus) or "area" (the same, and a photo whose shape is
    within 2 % of its size is not cropped: Emu3)."""
    prompt_template: str = LUMINA_PROMPT
    """Template with {width}, {height} and {prompt}; in some families also with names of special tokens."""
    ids: dict[str, int] = field(default_factory=dict, metadata=limits(0))
    """Required token ids by token name; a tokenizer with other ids is an error."""
    known_words: list[str] | None = None
    """All words of the training captions, to warn about other words in prompts; null: unknown."""

    def __post_init__(self) -> None:
        """Raise ValueError for invalid values or combinations."""
        one_of("layout.buckets", self.buckets, ("square", *SHAPES))
        if self.grid_px < 1 or self.resolution < 1 or self.resolution % self.grid_px:
            raise ValueError(
                f"layout.resolution={self.resolution} must be a multiple of layout.grid_px={self.grid_px}"
            )
        # Computing the list of sizes would take very long; a damaged protocol.json can ask for it.
        if self.resolution // self.grid_px > MOST_GRIDS:
            raise ValueError(
                f"layout.resolution={self.resolution} is too large for layout.grid_px={self.grid_px}; "
                f"allowed: up to {MOST_GRIDS} times layout.grid_px"
            )
        if "{prompt}" not in self.prompt_template:
            raise ValueError(f"layout.prompt_template={self.prompt_template!r} must contain {{prompt}}")
        # A template can come from a downloaded protocol.json. Attribute access such as {prompt.__class__}
        # would pass format(), so the names of the fields are checked too.
        try:
            self.prompt_template.format(width=1, height=1, prompt="")
            fields = [name for _, name, *_ in Formatter().parse(self.prompt_template) if name is not None]
        except (ValueError, LookupError, AttributeError):
            fields = [""]
        if not set(fields) <= {"width", "height", "prompt"}:
            raise ValueError(
                f"layout.prompt_template={self.prompt_template!r} is invalid; allowed fields: {{width}}, "
                "{height} and {prompt}"
            )

    @property
    def square(self) -> Size:
        """The square size (width, height) in pixels, which is the default of sampling."""
        return self.resolution, self.resolution

    @property
    def sizes(self) -> list[Size]:
        """All sizes (width, height) in pixels that the base supports."""
        shapes = SHAPES.get(self.buckets)
        return shapes(self.resolution, self.grid_px) if shapes else [self.square]


def is_commit(revision: str) -> bool:
    """Return True if `revision` is the hash of a commit, and not a branch or tag, which can change."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@dataclass(kw_only=True)
class SamplingNumbers:
    """Sampling defaults of a base model; the decoder uses them unless it has its own."""

    cfg_scale: float = field(default=1.0, metadata=limits(0, 1000))
    """Classifier-free guidance scale; 1: off."""
    top_k: int = field(default=0, metadata=limits(0))
    """Sample from the k most likely codes; 0: off."""
    top_p: float = field(default=1.0, metadata=limits(1e-6, 1))
    """Sample from the fewest most likely codes that together reach this probability; 1: off."""
    temperature: float = field(default=1.0, metadata=limits(0, 1000))
    """Divides the logits; 0: always the most likely code."""
    batch: int = field(default=16, metadata=limits(1))
    """Upper bound on images sampled together; does not change the images."""


@dataclass(kw_only=True)
class HubFiles:
    """Files of one Hugging Face repository."""

    repo: str = MISSING
    """owner/name."""
    revision: str = "main"
    """Commit or branch; a branch such as "main" can change."""
    licence: str = MISSING
    """The licence in one line; its text is on the repository's page."""
    files: list[str] = field(default_factory=list)
    """Names or patterns of the files that are needed."""
    gigabytes: float = field(default=MISSING, metadata=limits(0))
    """Approximate size of these files in 1e9 bytes."""


@dataclass(kw_only=True)
class ModelConfig:
    """A base model."""

    name: str = MISSING
    family: str = "personalar.models.chameleon"
    """Package of the model's class; see docs/adding_a_backend.md."""
    path: str | None = None
    """Folder of the weights; "package://x" is inside the installed package; null: download from `hub`."""
    vq_path: str | None = None
    """Folder of the image tokenizer if it is not in `path`; null: in `path`, or from `vq_hub`."""
    hub: HubFiles | None = None
    """Repository of the model."""
    vq_hub: HubFiles | None = None
    """Repository of the image tokenizer, if `hub` does not contain it."""
    tokenizer_hub: HubFiles | None = None
    """Repository of the text tokenizer, if `hub` does not contain it."""
    layout: ProtocolConfig | None = None
    """Image sizes and token layout; null: from `protocol.json` in the folder."""
    dtype: str = "float32"
    """Precision of the transformer: float32, bfloat16 or float16."""
    float16_problem: str | None = None
    """Reason why dtype=float16 does not work; null: it works."""
    nearest_problem: str | None = None
    """Reason why recipe.identifier.init=nearest does not work; null: it works."""
    accelerator: str = "cpu"
    """What trainer=auto uses: "cpu", "gpu", or "auto" (a GPU if torch finds one)."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    sampling: SamplingNumbers = field(default_factory=SamplingNumbers)
    photo_warning: str | None = None
    """Warning that is printed if the subject is real photographs."""

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        # Such a run would end with NaN after hours, so it is an error now.
        if self.dtype == "float16" and self.float16_problem:
            raise ValueError(
                f"model.dtype=float16 does not work for model={self.name}: {self.float16_problem}; choose "
                "model.dtype=bfloat16, or float32, which needs twice the memory"
            )
        if self.recipe.identifier.init == "nearest" and self.nearest_problem:
            raise ValueError(
                f"model.recipe.identifier.init=nearest does not work for model={self.name}: "
                f"{self.nearest_problem}; choose random, or words with model.recipe.identifier.words=[...]"
            )
        one_of("model.accelerator", self.accelerator, ACCELERATORS)
        if self.path is None and self.hub is None:
            raise ValueError(f"model={self.name} has neither path nor hub: set model.path=DIR")


@dataclass(kw_only=True)
class DecoderConfig:
    """The decoder: its class and arguments; null for arguments that it does not have."""

    _target_: str = MISSING
    """Class of the decoder."""
    cfg_scale: float = field(default=II("model.sampling.cfg_scale"), metadata=limits(0, 1000))
    """Classifier-free guidance scale; 1: off."""
    top_k: int = field(default=II("model.sampling.top_k"), metadata=limits(0))
    """Sample from the k most likely codes; 0: off."""
    top_p: float = field(default=II("model.sampling.top_p"), metadata=limits(1e-6, 1))
    """Sample from the fewest most likely codes that together reach this probability; 1: off."""
    temperature: float = field(default=II("model.sampling.temperature"), metadata=limits(0, 1000))
    """Divides the logits; 0: always the most likely code."""
    window: int | None = field(default=None, metadata=limits(2))
    """decoder=jacobi: codes checked per forward pass."""
    max_batch: int | None = field(default=None, metadata=limits(1))
    """decoder=jacobi: largest batch that is decoded speculatively; see docs/sampling.md."""
    bucket: int | None = field(default=None, metadata=limits(1))
    """decoder=compiled: cache lengths are rounded up to a multiple of this number of slots."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of a user-defined decoder."""

    def __post_init__(self) -> None:
        if not self._target_.startswith("personalar.generation.decoders."):
            return  # a user's decoder checks its own arguments
        own = {"JacobiDecoder": ("window", "max_batch"), "CompiledDecoder": ("bucket",)}
        for target, names in own.items():
            for name in names:
                value, mine = getattr(self, name), self._target_.endswith(target)
                if mine and value is None:
                    raise ValueError(f"decoder.{name}=null: {target} needs a number; leave out the setting")
                if value is not None and not mine:
                    raise ValueError(
                        f"decoder.{name}={value} is not an argument of {self._target_.split('.')[-1]}, only "
                        f"of {target}; choose another decoder=..."
                    )

    @property
    def settings(self) -> dict[str, Any]:
        """`_target_` and arguments for `hydra.utils.instantiate`."""
        named = asdict(self)
        further = named.pop("arguments")
        return {name: value for name, value in named.items() if value is not None} | further
