"""Settings of the subject, and of the pictures to sample for evaluation. Values: conf/subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from personalar.config.fields import SEED, limits, one_of

_NAMES = {
    "backpack": "backpack backpack_dog",
    "stuffed animal": "bear_plushie grey_sloth_plushie wolf_plushie",
    "bowl": "berry_bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat cat2",
    "clock": "clock",
    "sneaker": "colorful_sneaker shiny_sneaker",
    "dog": "dog dog2 dog3 dog5 dog6 dog7 dog8",
    "toy": "duck_toy monster_toy poop_emoji rc_car robot_toy",
    "boot": "fancy_boot",
    "glasses": "pink_sunglasses",
    "cartoon": "red_cartoon",
    "teapot": "teapot",
    "vase": "vase",
}
DREAMBENCH_CLASSES = dict(sorted((name, noun) for noun, names in _NAMES.items() for name in names.split()))
"""Folder of each DreamBench subject -> its class in the published prompts."""


STYLE, IN_STYLE = "style", "in the style of {}"
"""The noun of every style, and the phrase that names it in prompts: a style has no class."""
OWN_PHOTOS = "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
OWN_STYLE = "+subject=style needs subject.path=DIR (1 to 10 pictures in the style)"
NOT_RENDERED = ("folder", "dreambench", "style")
"""Options of `subject` that read a folder."""


def dreambench_class(path: str | None) -> str:
    """Return the class of the DreamBench subject whose folder is `path`.

    Raises:
        ValueError: the folder has another name.
    """
    # resolve(): the path may be "." or end with a slash.
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
    """"rendered" (an instance of the nano world), "folder" (your own photos) or "style" (pictures in one
    style)."""
    name: str = MISSING
    """Name of the run folder; not a path."""
    noun: str = MISSING
    """The class of the subject in plain words, such as dog; of a style always "style"."""
    seed: int = field(default=0, metadata=SEED)
    """Which instance of the class is rendered."""
    path: str | None = None
    """Folder of photos, or one picture, with kind=folder or kind=style."""
    flip: bool = False
    """Also train on mirrored photos; not for subjects with writing, or whose two sides differ."""
    proxies: str | None = None
    """Folder of generated pictures of the subject, to train on beside the photos; see docs/methods.md."""
    proxy_share: float = field(default=0.5, metadata=limits(0.01, 1))
    """Share of the subject's training sequences that show a proxy; 1: photos are not trained on."""
    live: bool | None = None
    """Whether the subject is an animal or a person; null: derived from the noun."""
    description: str | None = None
    """Text description of the subject for a comparison without training; null: from the renderer, or none."""
    source: dict[str, Any] = field(default_factory=dict)
    """`_target_` of your own function that returns a `core.types.Subject`, and its arguments; empty: use
    `kind`."""

    def __post_init__(self) -> None:
        one_of("subject.kind", self.kind, ("rendered", "folder", "style"))
        # A user's own source needs no folder.
        if self.photographs and self.path is None and not self.source:
            raise ValueError(OWN_STYLE if self.kind == "style" else OWN_PHOTOS)
        if self.path is not None and not self.photographs:
            raise ValueError(
                f"subject.path={self.path}: the subject {self.name} is rendered and reads no photos; for "
                f"your own write +subject=folder subject.path={self.path} subject.noun={self.noun}"
            )
        if (self.kind == "style") != (self.noun == STYLE):
            raise ValueError(
                f"subject.kind={self.kind} with subject.noun={self.noun!r:.60}: the noun of a style is "
                f"always {STYLE}, and a subject has another one; use +subject=style subject.path=DIR, or "
                "+subject=folder subject.path=DIR subject.noun=dog"
            )
        for name in ("path", "live", "description", "proxies") if self.source else ():
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"subject.{name}={value} is not used for the subject that subject.source returns: leave "
                    "one of the two settings out"
                )

    @property
    def photographs(self) -> bool:
        """True if the pictures are real photographs."""
        return self.kind != "rendered"


@dataclass(kw_only=True)
class SamplesConfig:
    """Pictures that are sampled before training and after each stage."""

    seeds: list[int] = field(default_factory=lambda: [0], metadata=SEED)
    """Every prompt is sampled with every seed; the same seeds at every stage."""
    prompts: list[str] | None = None
    """Prompts with "{}" for the subject; null: those of `prompt_set`."""
    prompt_set: str = "world"
    """"world" (what the nano world can show) or "dreambench" (the 25 published prompts)."""
    num_grid_prompts: int = field(default=6, metadata=limits(1, 100))
    """Number of prompts in the sample grids."""
    grid_every_steps: int = field(default=30, metadata=limits(0))
    """Steps between sample grids during training; 0: none."""
    time_share: float = field(default=0.3, metadata=limits(0, 1))
    """Largest share of a stage's time for sample grids; grids that would exceed it are skipped."""
    kinds: list[str] = field(default_factory=lambda: ["subject", "class", "description"])
    """Kinds of samples: "subject" ([V] noun), "class" (without [V]), "description" (base only), "prior" (one
    class prompt with many seeds, for PRES and diversity), "unrelated" (other things, for drift)."""
    prior_images: int = field(default=8, metadata=limits(2))
    """Number of samples of kind "prior"."""
    strength: float = field(default=1.0, metadata=limits(0, 1.5))
    """Strength of the concept in the pictures after a stage; 0: the class word instead (docs/sampling.md)."""

    def __post_init__(self) -> None:
        one_of("samples.prompt_set", self.prompt_set, ("world", "dreambench"))
        for kind in self.kinds:
            one_of("samples.kinds", kind, ("subject", "class", "description", "prior", "unrelated"))
        if "subject" not in self.kinds:
            raise ValueError(f"samples.kinds={self.kinds} must contain subject, which grids and scores need")
        # Equal seeds would give equal pictures, which count twice in the means.
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"samples.seeds={self.seeds} must contain at least one seed and no duplicate")


def check_style_prompts(setting: str, prompts: Sequence[str] | None) -> None:
    """Raise ValueError unless every prompt in `setting` has its "{}" in `IN_STYLE`, and nowhere else."""
    for prompt in prompts or (None,):
        if prompt is None or IN_STYLE not in prompt or "{}" in prompt.replace(IN_STYLE, ""):
            raise ValueError(
                f"{setting}: {prompt!r} is not a prompt of a style: write {IN_STYLE!r} where the style is "
                f"named, and no other {{}}, such as 'a cat {IN_STYLE}'"
            )
