"""The numbers a model is personalized with: how long, how fast, on what. Values: conf/model/recipe.

NOTE: configuration dataclasses are not frozen: OmegaConf makes frozen ones read-only, and YAML could not
fill them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from personalar.config.fields import limits, one_of

QKV = "model.layers.*.self_attn.[qkv]_proj.weight"
"""What the paper's count of parameters (1610.6 M at 7B) says that stage 2 trains."""


@dataclass(kw_only=True)
class StageNumbers:
    """Duration and speed of one stage."""

    steps: int = field(default=MISSING, metadata=limits(1))
    """Optimizer steps."""
    batch: int = field(default=MISSING, metadata=limits(1))
    """Sequences per forward pass."""
    accumulate: int = field(default=1, metadata=limits(1))
    """Forward passes per optimizer step."""
    lr: float = field(default=MISSING, metadata=limits(0, 1000))
    """Peak learning rate of what the stage trains."""
    identifier_lr: float | None = field(default=None, metadata=limits(0, 1000))
    """Peak learning rate of the identifier rows, where it is another one; null: `lr`."""
    schedule: str = "linear"
    """"linear" (decay to 0 at the last step) or "constant"."""
    weight_decay: float = field(default=0.0, metadata=limits(0, 1000))
    """Decay of weights; the identifier rows never decay. AdamW without it is Adam."""
    gradient_clip: float | None = field(default=1.0, metadata=limits(1e-9))
    """Largest gradient norm over everything that trains; null: no clipping."""
    replay_ratio: float = field(default=0.0, metadata=limits(0, 0.9))
    """Part of each batch that is class images made by the base itself (prior preservation)."""
    image_token_ratio: float = field(default=0.5, metadata=limits(0, 1))
    """Part of the subject sequences whose prompt ends in the photo's own token S_i (the paper: 1:1)."""

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, ("linear", "constant"))
        if self.replay_ratio > 0 and self.replayed == self.batch:
            raise ValueError(
                f"replay_ratio={self.replay_ratio} with batch={self.batch} leaves no sequence of the "
                "subject: raise batch, or set replay_ratio=0"
            )

    @property
    def sequences(self) -> int:
        """Sequences that one optimizer step sees."""
        return self.batch * self.accumulate

    @property
    def replayed(self) -> int:
        """Sequences of a batch that are replayed class images; at least one where replay is on."""
        if self.replay_ratio == 0:
            return 0
        return min(self.batch, max(1, math.floor(self.batch * self.replay_ratio + 0.5)))

    def share(self, world: int) -> tuple[int, int]:
        """Return (sequences per forward pass, forward passes per step) of each of `world` processes.

        A step sees the same sequences whatever `world` is.

        Raises:
            ValueError: when the step's sequences cannot be shared out evenly.
        """
        if self.batch % world == 0:
            return self.batch // world, self.accumulate
        if self.accumulate % world == 0:
            return self.batch, self.accumulate // world
        raise ValueError(
            f"{world} processes cannot share batch={self.batch} accumulate={self.accumulate} evenly: make "
            f"one of them a multiple of {world}, or set trainer.devices to a divisor"
        )

    def owner(self, number: int, world: int) -> int:
        """Return the process that sequence `number` of a stage belongs to."""
        if self.batch % world == 0:
            return number % self.batch % world
        return number // self.batch % world


@dataclass(kw_only=True)
class DataNumbers:
    """The mixture of training sequences."""

    templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    """Neutral training prompts; "{}" becomes "[V] <noun>"."""
    class_name: bool = True
    """Say the class after [V] ("[V] cat"), in training and in sampling; False: "[V]" alone."""
    prompt_dropout: float = field(default=0.0, metadata=limits(0, 1))
    """Chance that a subject's sequence loses its prompt (the context of classifier-free guidance)."""
    replay_prompt_dropout: float = field(default=0.0, metadata=limits(0, 1))
    """The same for replayed class images: guidance's context goes on meaning "any of the class"."""
    crops_per_photo: int = field(default=0, metadata=limits(0))
    """Randomly shifted and scaled copies of each photo."""
    copies_per_photo: int = field(default=1, metadata=limits(0))
    """Unchanged copies of each photo; with the crops they are the pool that batches draw from."""
    crop_scale: float = field(default=0.8, metadata=limits(0.1, 1))
    """Smallest side of a random crop relative to the photo."""
    crop: str = "center"
    """Part of a photo that is kept where its shape is not one of the model's: "center", or "random" as
    Lumina-mGPT trains (each copy another)."""
    replay_prompts: list[str] = field(default_factory=list)
    """Prompts of the replayed class images; "{}" becomes the noun."""
    replay_prompts_live: list[str] = field(default_factory=list)
    """More of them for animals."""
    replay_images: int = field(default=0, metadata=limits(0))
    """Number of class images that the base makes for replay."""

    def __post_init__(self) -> None:
        if not self.templates or not all("{}" in template for template in self.templates):
            raise ValueError(f"data.templates={self.templates} must each hold {{}} where '[V] <noun>' goes")
        if self.crops_per_photo + self.copies_per_photo < 1:
            raise ValueError("data.crops_per_photo and data.copies_per_photo are 0: one must be at least 1")
        one_of("data.crop", self.crop, ("center", "random"))


@dataclass(kw_only=True)
class IdentifierNumbers:
    """Start of the identifier rows."""

    init: str = "random"
    """"random" (the vocabulary's mean and deviation), "words" (for [V] the mean of `words`), or "nearest"
    (for [V] the reserved row under which the photos are likeliest), if pretraining gave those a meaning."""
    words: list[str] = field(default_factory=list)
    """Words whose embeddings start [V] when init=words."""

    def __post_init__(self) -> None:
        one_of("identifier.init", self.init, ("random", "nearest", "words"))
        if self.init == "words" and not self.words:
            raise ValueError("identifier.init=words needs words: identifier.words=[orange,striped]")


@dataclass(kw_only=True)
class RecipeConfig:
    """The numbers a model is personalized with; a method says what its stages train, the recipe how fast."""

    name: str = MISSING
    stages: dict[str, StageNumbers] = field(default_factory=dict)
    """By the name that `method.stages.*.numbers` refers to."""
    trained_weights: list[str] = field(default_factory=lambda: [QKV])
    """Patterns (fnmatch) of the weights that method=paper and method=joint train."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999], metadata=limits(0, 0.999999))
    """AdamW's moments."""
    data: DataNumbers = field(default_factory=DataNumbers)
    identifier: IdentifierNumbers = field(default_factory=IdentifierNumbers)
    loss: str = "image_tokens"
    """"image_tokens" (codes only, the paper) or "answer" (all of Lumina-mGPT's supervised labels)."""
    z_loss: float = field(default=0.0, metadata=limits(0, 1000))
    """Weight of the mean squared log-partition (Lumina-mGPT: 1e-5)."""
    dropout: float = field(default=0.0, metadata=limits(0, 0.9))
    """Chance that a number that attention or MLP adds is left out of a training pass (Lumina-mGPT: 0.05;
    the paper says nothing). Pictures and scores are made without dropout."""

    def __post_init__(self) -> None:
        one_of("recipe.loss", self.loss, ("image_tokens", "answer"))
        if len(self.betas) != 2:
            raise ValueError(f"betas={self.betas} must hold 2 numbers")
