"""The Chameleon backend: Lumina-mGPT, Anole, Chameleon and the small model that ships with the package.

They are one class with other numbers. A model folder looks like this:

    protocol.json                              the sequence layout's numbers (`ProtocolConfig`)
    base/{config.json, tokenizer.json}         as transformers writes them for Chameleon
    base/model.safetensors                     or shards with an index
    vq/{config.json, model.safetensors}        the image tokenizer, encoder and decoder
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from personalar.models.cache import KVCache
from personalar.models.checkpoint import load_strict, read_json, write_bytes, write_json, write_tensors
from personalar.models.preprocess import bucket_sizes, preprocess, to_model_range
from personalar.models.protocol import Protocol, ProtocolConfig
from personalar.models.tokenizer import Tokenizer
from personalar.models.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.vq import VQConfig, VQModel

VQ_PIXELS_AT_ONCE = 2**22  # 16 images of 512x512; bounds the memory of convolutions at full resolution


class ChameleonBackend(nn.Module):
    """Transformer, image tokenizer, vocabulary and layout of one base model; see `base.Backend`."""

    def __init__(
        self,
        *,
        transformer: ChameleonTransformer,
        vq: VQModel,
        tokenizer: Tokenizer,
        protocol: ProtocolConfig,
    ) -> None:
        super().__init__()
        rows = transformer.config.vocab_size
        if tokenizer.vocab_size > rows:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds only {rows}")
        if tokenizer.num_codes != vq.config.num_embeddings:
            raise ValueError(
                f"the tokenizer names {tokenizer.num_codes} image codes, the VQ model has "
                f"{vq.config.num_embeddings}: they belong to different models"
            )
        self.transformer, self.vq, self.tokenizer = transformer, vq, tokenizer
        self.protocol = Protocol(tokenizer, protocol, downsample=vq.config.downsample)
        square = [(protocol.resolution, protocol.resolution)]
        aspect = protocol.buckets == "aspect"
        self.sizes = bucket_sizes(protocol.resolution, protocol.grid_px) if aspect else square
        """Image sizes (width, height) that this model knows."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.transformer.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer; the VQ model is always float32."""
        return self.transformer.lm_head.weight.dtype

    @property
    def code_offset(self) -> int:
        """The id of image code 0."""
        return self.tokenizer.code_offset

    def preprocess(
        self,
        image: Image.Image,
        *,
        crop: Literal["center", "random"] = "center",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return (3, H, W) in [0, 1] of the best of `self.sizes`; see `preprocess.preprocess`."""
        return preprocess(image, sizes=self.sizes, crop=crop, generator=generator)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to codes (B, h, w) int64."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, 3, H, W)")
        pixels = to_model_range(images.to(self.device))
        at_once = max(1, VQ_PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))
        return torch.cat([self.vq.encode(chunk) for chunk in pixels.split(at_once)])

    @torch.no_grad()
    def decode_images(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to images (B, 3, H, W) in [0, 1]."""
        if codes.ndim != 3:
            raise ValueError(f"codes have shape {tuple(codes.shape)}, expected (B, h, w)")
        at_once = max(1, VQ_PIXELS_AT_ONCE // (codes[0].numel() * self.vq.config.downsample**2))
        pixels = [self.vq.decode(chunk) for chunk in codes.to(self.device).split(at_once)]
        return (torch.cat(pixels) + 1.0) / 2.0

    def grammar(self, h: int, w: int) -> list[int | None]:
        """Return the ids of an image of (h, w) codes, None where a code is free; see `Protocol.grammar`."""
        return self.protocol.grammar(h, w)

    def new_cache(self, *, capacity: int, pad: Tensor) -> KVCache:
        """Allocate a cache of `capacity` tokens for rows left-padded by `pad` (B,) slots."""
        return self.transformer.new_cache(capacity=capacity, pad=pad)

    def embed(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to embeddings (B, T, D)."""
        return self.transformer.embed(ids)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map embeddings (B, T, D) to hidden states (B, T, D); see `ChameleonTransformer.forward`."""
        return self.transformer(embeds, positions, cache, mask)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to float32 logits of the image codes (..., K)."""
        return self.transformer.logits(hidden, self.tokenizer.image_rows)


def load_backend(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] = "sdpa",
    transformer: ChameleonTransformer | None = None,
) -> ChameleonBackend:
    """Read a model folder; everything in it is frozen and in evaluation mode.

    Args:
        path: the folder.
        dtype: precision of the transformer; the VQ model stays float32.
        attention: "eager" where it is trained on a CPU, see `TransformerConfig`.
        transformer: one that is filled already (cut up over processes), instead of base/'s weights.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when files do not fit together, naming the tensors or settings.
    """
    device = torch.device(device)
    if not path.is_dir():
        raise FileNotFoundError(f"no model folder at {path}; set model.path to a folder with base/ and vq/")
    protocol = _from_json(ProtocolConfig, path / "protocol.json")
    tokenizer = Tokenizer.from_file(path / "base" / "tokenizer.json")
    if transformer is None:
        numbers = read_json(path / "base" / "config.json")
        with torch.device("meta"):
            transformer = ChameleonTransformer(TransformerConfig.from_hf(numbers, attention=attention))
        # A Chameleon checkpoint may carry the encoder half of its image tokenizer; ours comes from vq/.
        load_strict(
            transformer, path / "base", dtype=dtype, device=device, ignore_prefixes=("model.vqmodel.",)
        )
    with torch.device("meta"):
        vq = VQModel(VQConfig.from_hf(read_json(path / "vq" / "config.json")))
    load_strict(vq, path / "vq", dtype=torch.float32, device=device)
    backend = ChameleonBackend(transformer=transformer, vq=vq, tokenizer=tokenizer, protocol=protocol)
    return backend.eval().requires_grad_(False)


def save_backend(backend: ChameleonBackend, path: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a model folder with weights in `dtype`, each file atomically; return it."""
    tokenizer, vq = backend.tokenizer, backend.vq.config.to_hf()
    base = backend.transformer.config.to_hf() | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "bos_token_id": tokenizer.bos,
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.sep,
        "vocabulary_map": {"<image>": tokenizer.boi},  # transformers cannot construct the model without one
        "vq_config": vq,
        "dtype": str(dtype).removeprefix("torch."),
    }
    write_json(path / "base" / "config.json", base)
    write_json(path / "vq" / "config.json", vq)
    write_bytes(path / "base" / "tokenizer.json", tokenizer.to_json().encode())
    write_tensors(path / "base", backend.transformer.state_dict(), dtype=dtype)
    write_tensors(path / "vq", backend.vq.state_dict(), dtype=dtype)
    write_json(path / "protocol.json", asdict(backend.protocol.config))
    return path


def init_backend(
    *,
    transformer: TransformerConfig,
    vq: VQConfig,
    tokenizer: Tokenizer,
    protocol: ProtocolConfig,
    seed: int,
) -> ChameleonBackend:
    """Return an untrained backend whose weights are drawn from `seed`."""
    with torch.device("meta"):
        networks = ChameleonTransformer(transformer), VQModel(vq)
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        network.to_empty(device="cpu").init_weights(generator)
    return ChameleonBackend(
        transformer=networks[0], vq=networks[1], tokenizer=tokenizer, protocol=protocol
    ).eval()


def _from_json(kind: type[ProtocolConfig], path: Path) -> ProtocolConfig:
    values: dict[str, Any] = read_json(path)
    unknown = sorted(set(values) - set(kind.__dataclass_fields__))
    if unknown:
        raise ValueError(
            f"{path} has unknown keys {unknown}; allowed are {sorted(kind.__dataclass_fields__)}"
        )
    return kind(**values)
