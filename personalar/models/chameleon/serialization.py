"""Read and write Chameleon models, in one process or sharded by DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.core.files import fits, write_atomic
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.checkpoint_export import hf_config
from personalar.models.chameleon.model_files import ChameleonFiles, network_name, open_folder
from personalar.models.chameleon.norm_rows import expanded, expanded_shapes
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.chameleon.vq_checkpoint import load_vq
from personalar.models.checkpoint_folder import read_config, read_json, write_json
from personalar.models.cpu_kernels import use_fast_linears
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.sharding import ordinary_modules
from personalar.models.tensor_files import (
    expected_shapes,
    fill,
    fill_sharded,
    read_shapes,
    read_tensors,
    write_tensors,
)


def load_backend(
    where: Path | ChameleonFiles,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    transformer: ChameleonTransformer | None = None,
) -> ChameleonBackend:
    """Read a model; it is frozen and in evaluation mode.

    Args:
        where: a model folder, or the result of `open_folder`.
        dtype: precision of the transformer; the VQ model stays float32.
        device: device of all weights.
        transformer: a transformer to use as it is, without reading its weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files do not belong together; the message names tensors or settings.
    """
    device = torch.device(device)
    files = open_folder(where) if isinstance(where, Path) else where
    tokenizer = Tokenizer.from_file(files.tokenizer)
    config = files.base / "config.json"
    names = read_json(config).get("vocabulary_map") or {}
    if not fits(names, {"*": int}):
        raise ValueError(f"{config} is damaged (vocabulary_map): copy it again")
    # A tokenizer with the image codes at other ids would load, and decode to wrong pictures.
    codes = {n: i for n, i in names.items() if n.startswith("IMGIMG")}
    tokenizer.check_ids(files.layout.ids | codes)
    network = transformer
    if network is None:
        numbers = read_config(config, TransformerConfig.from_hf)
        # On meta, so that the weights are not allocated twice.
        with torch.device("meta"):
            network = ChameleonTransformer(numbers)
    # Before the weights, so that a wrong tokenizer is an error before 14 GB are read.
    vq = load_vq(files.vq, device=device)
    backend = ChameleonBackend(transformer=network, vq=vq, tokenizer=tokenizer, protocol=files.layout)
    if transformer is None:
        tensors, shapes = network_tensors(files, network)
        where, published = files.base, files.published
        fill(network, tensors, shapes, where=where, published=published, dtype=dtype, device=device)
        use_fast_linears(network)
    return backend.eval().requires_grad_(False)


def load_sharded_backend(
    files: ChameleonFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    changed: Mapping[str, Tensor],
) -> ChameleonBackend:
    """Read a model within DeepSpeed's sharding context, one tensor at a time.

    Layers are sharded when they are created, so a process needs memory only for its share and one tensor.

    Args:
        files, dtype, device: as for `load_backend`.
        changed: weights by name that replace those of the files (from an earlier stage).
    """
    numbers = read_config(files.base / "config.json", TransformerConfig.from_hf)
    # Not on meta: within DeepSpeed's context each layer is sharded when it is created.
    transformer = ChameleonTransformer(numbers)
    # The image tokenizer is small and runs on every rank by itself, so it is not sharded.
    with ordinary_modules():
        backend = load_backend(files, dtype=dtype, device=device, transformer=transformer)
    tensors, shapes = network_tensors(files, transformer)
    fill_sharded(
        transformer,
        tensors,
        shapes,
        where=files.base,
        published=files.published,
        dtype=dtype,
        changed=changed,
    )
    return backend


def network_tensors(
    files: ChameleonFiles, transformer: ChameleonTransformer
) -> tuple[Iterator[tuple[str, Tensor]], dict[str, torch.Size]]:
    """Return the transformer's (name, tensor) pairs with query and key norms per head, and their shapes."""
    expected = expected_shapes(transformer)
    shapes = expanded_shapes(read_shapes(files.base, network_name), expected)
    return expanded(read_tensors(files.base, network_name), expected), shapes


def save_backend(backend: ChameleonBackend, path: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a model folder with weights in `dtype`, each file atomically; return the folder."""
    tokenizer, vq = backend.tokenizer, backend.vq.config
    base = hf_config(backend.transformer.config, tokenizer, vq, dtype=dtype, norm_rows=None)
    write_json(path / "base" / "config.json", base)
    write_json(path / "vq" / "config.json", vq.to_hf())
    write_atomic(path / "base" / "tokenizer.json", tokenizer.to_json().encode())
    write_tensors(path / "base", backend.transformer.state_dict(), dtype=dtype)
    write_tensors(path / "vq", backend.vq.state_dict(), dtype=dtype)
    # Last, because a folder without it is unfinished.
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
    """Return an untrained backend with random weights, which depend only on `seed`."""
    with torch.device("meta"):
        networks = ChameleonTransformer(transformer), VQModel(vq)
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        network.to_empty(device="cpu").init_weights(generator)
    return ChameleonBackend(
        transformer=networks[0], vq=networks[1], tokenizer=tokenizer, protocol=protocol
    ).eval()
