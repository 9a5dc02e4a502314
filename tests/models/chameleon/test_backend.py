"""The backend contract, the folder format, and every way a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest_backend import CAPTIONS, IMAGE_PX, load_backend, make_backend, make_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.serialization import init_backend, save_backend
from personalar.models.network.vq import VQConfig


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_chunked_vq_equals_whole(tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = tiny_backend.encode_images(images(3))
    decoded = tiny_backend.decode_images(codes)
    monkeypatch.setattr("personalar.models.network.vq.BYTES_AT_ONCE", 1)
    assert torch.equal(tiny_backend.encode_images(images(3)), codes)
    torch.testing.assert_close(tiny_backend.decode_images(codes), decoded)


def test_loaded_equals_saved(tiny_backend: ChameleonBackend) -> None:
    fresh = make_backend()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, tiny_backend.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in tiny_backend.parameters())
    assert not tiny_backend.training
    assert tiny_backend.layout == fresh.layout
    for caption in CAPTIONS:
        assert tiny_backend.tokenizer.encode_text(caption) == fresh.tokenizer.encode_text(caption)


def test_half_precision_files_and_runtime_dtype(tmp_path: Path, tiny_backend: ChameleonBackend) -> None:
    path = save_backend(tiny_backend, tmp_path / "half", dtype=torch.float16)
    assert load_file(path / "base" / "model.safetensors")["lm_head.weight"].dtype == torch.float16
    loaded = load_backend(path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.device == torch.device("cpu")
    assert next(loaded.vq.parameters()).dtype == torch.float32
    assert not list(path.rglob("*.tmp"))


def test_image_logits_are_the_image_rows(tiny_backend: ChameleonBackend) -> None:
    hidden = tiny_backend(tiny_backend.embed(torch.tensor([[0, 5, 9]])))
    logits = tiny_backend.image_logits(hidden)
    assert logits.shape == (1, 3, 64) and logits.dtype == torch.float32 and logits.isfinite().all()
    torch.testing.assert_close(logits, tiny_backend.transformer.logits(hidden)[..., 4:68])


def test_image_tokenizer_inside_the_base_is_ignored(folder: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.vqmodel.quantize.embedding.weight"] = torch.zeros(3)

    edit_tensors(folder / "base" / "model.safetensors", add)
    load_backend(folder)


def test_wrong_tensors_are_all_named(folder: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.extra"] = torch.zeros(1)
        tensors["model.layers.1.self_attn.k_norm.bias"] = torch.zeros(3, 16)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:5]

    edit_tensors(folder / "base" / "model.safetensors", damage)
    with pytest.raises(ValueError) as error:
        load_backend(folder)
    told = str(error.value)
    assert "1 missing: model.norm.weight;" in told
    assert "1 unexpected: model.layers.0.extra;" in told
    assert "lm_head.weight [5, 32] instead of" in told
    assert "k_norm.bias [3, 16] instead of [2, 16]" in told


def test_missing_files_are_named(folder: Path) -> None:
    """Each of them; the later ones are asked for first."""
    weights = ["base/model.safetensors", "vq/model.safetensors"]
    for file in [*weights, "base/tokenizer.json", "vq/config.json", "base/config.json", "protocol.json"]:
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match=file):
            load_backend(folder)
    with pytest.raises(FileNotFoundError, match=r"set model\.path to a folder"):
        load_backend(folder / "nothing")


def test_damaged_files(folder: Path) -> None:
    weights = folder / "vq" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_backend(folder)
    (folder / "protocol.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_backend(folder)
    (folder / "protocol.json").write_text("[]")
    with pytest.raises(ValueError, match="contains a list, expected a JSON object"):
        load_backend(folder)


def test_unknown_protocol_key(folder: Path) -> None:
    edit_json(folder / "protocol.json", grid=3)
    with pytest.raises(ValueError, match=r"unknown keys \['grid'\]; allowed are"):
        load_backend(folder)


def test_parts_must_fit(tiny_backend: ChameleonBackend) -> None:
    parts = {"layout": ProtocolConfig(grid_px=16, resolution=32), "seed": 0, "tokenizer": make_tokenizer()}
    config, vq = tiny_backend.transformer.config, tiny_backend.vq.config
    small = type(config)(**(vars(config) | {"vocab_size": 100}))
    with pytest.raises(ValueError, match="the model embeds only 100"):
        init_backend(transformer=small, vq=vq, **parts)
    with pytest.raises(ValueError, match="names 64 image codes, the image tokenizer has 32"):
        init_backend(transformer=config, vq=VQConfig(**(vars(vq) | {"num_embeddings": 32})), **parts)


def test_saving_replaces_and_never_leaves_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_backend(make_backend(0), tmp_path / "model")
    before = (path / "base" / "model.safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_backend(make_backend(1), path)
    assert (path / "base" / "model.safetensors").read_bytes() == before
    assert not list(path.rglob("*.tmp"))
