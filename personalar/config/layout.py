"""The layout that a base model was trained with: image sizes, wording of a prompt, place of every token.

Plain numbers, from `protocol.json` of a model folder or `conf/model/*.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Formatter

from personalar.config.fields import limits, one_of
from personalar.core.image_sizes import Size, bucket_sizes

LUMINA_PROMPT = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"

MOST_GRIDS = 256
"""Largest side in units of a size token: the list of sizes grows with its square."""


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
