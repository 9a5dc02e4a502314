"""A family of base models outside of the package, as small as the contract allows.

The next id depends only on the last one. An image code is the grey value of 8 x 8 pixels; a character of text
is an id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from personalar.config.model_config import ProtocolConfig
from personalar.models.base import Head, Loss, TrainingSequence
from personalar.models.image_layout import with_endings
from personalar.models.image_transforms import preprocess
from personalar.models.network.cache import KVCache
from personalar.models.stored_base import BaseShape

BEGIN, END, PAD, CODE = 128, 129, 130, 140  # characters are below, reserved ids between, codes from here on
CODES, SIDE = 16, 4
LAYOUT = ProtocolConfig(grid_px=8, resolution=32, buckets="square", prompt_template="{prompt}")


@dataclass(frozen=True)
class ToyShape:
    """The sizes of the network."""

    hidden_size: int = 8
    num_hidden_layers: int = 1
    num_key_value_heads: int = 1
    vocab_size: int = CODE + CODES
    head_dim: int = 2

    def build(self) -> ToyNetwork:
        """Return the network."""
        return ToyNetwork(self)


class ToyNetwork(nn.Module):
    """An embedding table, one layer, and an output head."""

    def __init__(self, shape: ToyShape) -> None:
        super().__init__()
        self.table = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.blocks = nn.ModuleList([nn.Linear(shape.hidden_size, shape.hidden_size)])
        self.block_inputs = nn.ModuleList()
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(self, embeds: Tensor, dropout=None, ids=None) -> Tensor:
        """Map embeddings (B, T, D) to hidden states (B, T, D)."""
        for change in self.block_inputs if ids is not None else ():
            embeds = change(0, ids.flatten(), embeds.flatten(0, 1)).view(embeds.shape)
        return embeds + self.blocks[0](embeds).tanh()

    def head(self, rows: slice) -> Head:
        """Return the function from hidden states to the logits of `rows`."""
        weight = self.lm_head.weight[rows]
        return lambda hidden: F.linear(hidden, weight).float()


class ToyBackend(nn.Module):
    """See `personalar.models.base.Backend`."""

    sizes, square, known_words, max_tokens = [(32, 32)], (32, 32), None, 200
    reserved_ids, pad_id, code_offset = range(PAD + 1, CODE), PAD, CODE
    trained_rows = slice(None)
    device, dtype = torch.device("cpu"), torch.float32
    has_fixed_addresses, is_sharded = True, False

    def __init__(self, transformer: ToyNetwork) -> None:
        super().__init__()
        self.transformer = transformer
        self.endings, self.kept_endings, self.separate_ids = {}, set(), []

    @property
    def word_table(self) -> Tensor:
        return self.transformer.table.weight

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.blocks

    @property
    def block_inputs(self) -> nn.ModuleList:
        return self.transformer.block_inputs

    def preprocess(self, image: Image.Image, *, size=None, crop="center", generator=None) -> Tensor:
        return preprocess(image, sizes=self.sizes, crop=crop, generator=generator)

    def best_size(self, image: Image.Image) -> tuple[int, int]:
        return self.square

    def encode_images(self, images: Tensor) -> Tensor:
        return (F.avg_pool2d(images.mean(1, keepdim=True), 8)[:, 0] * (CODES - 1)).round().long()

    def decode_images(self, codes: Tensor) -> Tensor:
        grey = (codes / (CODES - 1)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        return grey[:, None].expand(-1, 3, -1, -1)

    def decode_bytes(self, images: int, grid: tuple[int, int]) -> int:
        return images * 32 * 32 * 12

    def code_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        return SIDE, SIDE

    def encode_text(self, text: str) -> list[int]:
        return [min(ord(letter), 127) for letter in text]

    def prompt_ids(self, prompt: str, size=None, tokens: Mapping[str, int] | None = None) -> list[int]:
        for name, index in (tokens or {}).items():
            prompt = prompt.replace(name, chr(index))
        own = set((tokens or {}).values())
        ids = [index if index in own else min(index, 127) for index in map(ord, prompt)]
        return with_endings(ids, self.endings)

    def training_sequence(self, prompt: str, codes: Tensor, tokens=None, *, loss: Loss) -> TrainingSequence:
        return self._sequence(self.prompt_ids(prompt, None, tokens), codes)

    def unconditional_prompt(self, prompt: Sequence[int]) -> list[int]:
        return [index for index in prompt if index in self.kept_endings]

    def negative_prompt(self, text: str, size=None, tokens: Mapping[str, int] | None = None) -> list[int]:
        raise ValueError("negative_prompt=: the guidance of this base has no words; leave out the setting")

    def unconditional_sequence(
        self, prompt: str, codes: Tensor, tokens=None, *, loss: Loss
    ) -> TrainingSequence:
        return self._sequence(self.unconditional_prompt(self.prompt_ids(prompt, None, tokens)), codes)

    def _sequence(self, prompt: list[int], codes: Tensor) -> TrainingSequence:
        before, drawn = [*prompt, BEGIN], (codes.flatten() + CODE).tolist()
        mask = (False,) * len(before) + (True,) * len(drawn) + (False,)
        return TrainingSequence(ids=(*before, *drawn, END), loss_mask=mask)

    def choices(self, loss: Loss) -> slice:
        return slice(CODE, CODE + CODES)

    def grammar(self, h: int, w: int) -> list[int | None]:
        return [BEGIN, *[None] * (h * w), END]

    def new_cache(self, positions: Tensor) -> KVCache:
        rows, slots = positions.shape
        table, factors = torch.zeros(rows, 1, slots, 2), torch.zeros(slots, 2)
        return KVCache(keys=[table], values=[table.clone()], cos=factors, sin=factors, positions=positions)

    def embed(self, ids: Tensor) -> Tensor:
        return self.transformer.table(ids)

    def forward(self, embeds: Tensor, cache=None, dropout=None, ids=None) -> Tensor:
        return self.transformer(embeds, ids=ids)

    def head(self, loss: Loss) -> Head:
        return self.transformer.head(self.choices(loss))

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.head("image_tokens")(hidden)


@dataclass(frozen=True)
class ToyFiles:
    """See `personalar.models.stored_base.ModelFiles`; one file in `folder`."""

    folder: Path
    layout: ProtocolConfig
    losses = ("image_tokens",)

    def missing(self) -> list[str]:
        return [str(file) for file in self.weights() if not file.is_file()]

    def parts(self) -> dict[str, Path]:
        return {"transformer": self.folder}

    def weights(self) -> list[Path]:
        return [self.folder / "toy.safetensors"]

    def shape(self, *, images: int) -> BaseShape:
        return BaseShape(
            network=ToyShape(), codes=SIDE**2, answer_tokens=SIDE**2 + 2, num_codes=CODES,
            vq_bytes=0, decode_bytes=images * 32 * 32 * 12,
        )  # fmt: skip

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> ToyBackend:
        network = ToyShape().build()
        network.load_state_dict(load_file(self.weights()[0]))
        return ToyBackend(network).eval().requires_grad_(False)

    def reserved_ids(self) -> range:
        return ToyBackend.reserved_ids


def write_weights(folder: Path) -> None:
    """Write the random weights of a toy."""
    generator = torch.Generator().manual_seed(0)
    shapes = ToyShape().build().state_dict()
    state = {name: torch.randn(t.shape, generator=generator) for name, t in shapes.items()}
    save_file(state, folder / "toy.safetensors")


def open_folder(path: Path, *, vq=None, tokenizer=None, layout: ProtocolConfig | None = None) -> ToyFiles:
    """Return the files of a toy in the folder `path`."""
    return ToyFiles(path, layout or LAYOUT)
