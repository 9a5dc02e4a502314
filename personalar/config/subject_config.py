"""A subject to learn, and the pictures to sample of it. Values: conf/subject."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import SEED, limits, one_of

DREAMBENCH_CLASSES = {
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
"""Name of each DreamBench subject's folder -> its class, as the prompts name it."""


OWN_PHOTOS = "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"


def dreambench_class(path: str | None) -> str:
    """Return the class of the DreamBench subject whose folder is `path`.

    Raises:
        ValueError: the folder has another name.
    """
    name = Path(path).resolve().name if path else None
    if name not in DREAMBENCH_CLASSES:
        raise ValueError(
            f"+subject=dreambench needs subject.path=DIR/NAME, a folder of DreamBench (got {path}); allowed "
            f"names: {', '.join(DREAMBENCH_CLASSES)}; for other photos use +subject=folder"
        )
    return DREAMBENCH_CLASSES[name]


@dataclass(kw_only=True)
class SubjectConfig:
    """A subject to learn."""

    kind: str = "rendered"
    """"rendered" (a fixed instance of the embedded world) or "folder" (one's own photos)."""
    name: str = MISSING
    """Names the run folder; no path."""
    noun: str = MISSING
    """The class in plain words, for instance dog."""
    seed: int = field(default=0, metadata=SEED)
    """Of the instance of the class that is rendered."""
    path: str | None = None
    """Folder of photos when kind=folder."""
    live: bool | None = None
    """An animal; null: known from the noun."""
    description: str | None = None
    """The best text description; null: from the renderer, or none."""
    source: dict[str, Any] = field(default_factory=dict)
    """`_target_` of a function of one's own that returns a `core.types.Subject`, and its arguments;
    empty: `kind`."""

    def __post_init__(self) -> None:
        one_of("subject.kind", self.kind, ("rendered", "folder"))
        if self.photographs and self.path is None and not self.source:
            raise ValueError(OWN_PHOTOS)

    @property
    def photographs(self) -> bool:
        """The pictures are real photographs."""
        return self.kind != "rendered"


@dataclass(kw_only=True)
class SamplesConfig:
    """Pictures to sample before, between and after the stages."""

    seeds: list[int] = field(default_factory=lambda: [0], metadata=SEED)
    """Every prompt is sampled once per seed, the same at every stage."""
    prompts: list[str] | None = None
    """Prompts with "{}" where the subject goes; null: those of `prompt_set`."""
    prompt_set: str = "world"
    """"world" (what the rendered world can show) or "dreambench" (the published 25)."""
    num_grid_prompts: int = field(default=6, metadata=limits(1, 100))
    """Number of prompts in the sample grids."""
    grid_every_steps: int = field(default=50, metadata=limits(0))
    """Steps between sample grids in training; 0: none."""
    time_share: float = field(default=0.3, metadata=limits(0, 1))
    """Largest part of a stage's time that grids may take (0 to 1); what would go beyond is left out."""
    kinds: list[str] = field(default_factory=lambda: ["subject", "class", "description"])
    """"subject", "class" (without [V]), "description" (base only), "prior" (one class prompt, many seeds:
    PRES and diversity), "unrelated" (other things: drift)."""
    prior_images: int = field(default=8, metadata=limits(2))
    """Seeds of the kind "prior"."""

    def __post_init__(self) -> None:
        one_of("samples.prompt_set", self.prompt_set, ("world", "dreambench"))
        for kind in self.kinds:
            one_of("samples.kinds", kind, ("subject", "class", "description", "prior", "unrelated"))
        if "subject" not in self.kinds:
            raise ValueError(f"samples.kinds={self.kinds} must hold subject, which grids and scores show")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"samples.seeds={self.seeds} must be at least one seed, each once")
