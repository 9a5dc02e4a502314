"""Everything on a device that is not the CPU: the same results, no mixing, and no waiting at every token.

The device is made of Python (`second_device.py`), because no GPU is at hand where the tests run. Started by
`test_second_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest_run import QUICK, compose_config
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load
from second_device import NAME, FarTensor, second_device
from test_compiled import Uncompiled
from test_decoding import TEXTS, prompts

import personalar.training.module
import personalar.training.train
from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.concept import Concept
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import load_backend
from personalar.run import personalize, prepare

DECODERS: dict[str, Callable[..., PlainDecoder]] = {
    "plain": PlainDecoder,
    "static": lambda **s: Uncompiled(bucket=16, **s),
    "jacobi": lambda **s: JacobiDecoder(window=4, **s),
    "jacobi of three": lambda **s: JacobiDecoder(window=4, max_batch=3, **s),
    "maximal": lambda **s: JacobiDecoder(window=4, max_batch=2, coupling="maximal", **s),
    "relaxed": lambda **s: JacobiDecoder(window=4, coupling="independent", relax=3, **s),
}
GRIDS = [(4, 4), (2, 6), (6, 2)]


def draw(decoder: PlainDecoder, folder: Path, device: str) -> list[torch.Tensor]:
    """Draw one image of each size with a learned [V], all on `device`."""
    backend = load_backend(folder, device=device)
    rows = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    identifier = Identifier(tokens={"[V]": backend.tokenizer.concept_ids[0]}, rows=rows).to(device)
    return [c.cpu() for c in decoder(backend, prompts(backend, *TEXTS), GRIDS, [1, 2, 3], identifier)]


@pytest.mark.parametrize("settings", [{"cfg_scale": 2.0, "top_k": 20}, {"top_p": 0.9, "temperature": 0.7}])
@pytest.mark.parametrize("name", DECODERS)
def test_the_same_codes_as_on_the_cpu(tiny_model_dir: Path, name: str, settings: dict[str, float]) -> None:
    near = draw(DECODERS[name](**settings), tiny_model_dir, "cpu")
    with second_device():
        far = draw(DECODERS[name](**settings), tiny_model_dir, NAME)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize("name", ["plain", "static"])
def test_nothing_is_read_back_while_an_image_is_drawn(tiny_model_dir: Path, name: str) -> None:
    """The host waits for the device as often for 64 codes as for 16: before and after, at no code."""
    with second_device() as device:
        backend = load_backend(tiny_model_dir, device=NAME)
        decoder, waits = DECODERS[name](cfg_scale=2.0, top_k=20), []
        for side in (4, 8):
            device.waits.clear()
            decoder(backend, prompts(backend, *TEXTS), (side, side), [1, 2, 3])
            waits.append(device.waits.total())
    assert waits[0] == waits[1] <= 6, device.waits


def test_jacobi_waits_once_for_a_window(tiny_model_dir: Path) -> None:
    with second_device() as device:
        backend = load_backend(tiny_model_dir, device=NAME)
        calls: list[int] = []
        decoder = JacobiDecoder(window=4, cfg_scale=2.0)
        device.waits.clear()
        decoder(backend, prompts(backend, TEXTS[0]), (8, 8), [1], progress=lambda *_: calls.append(1))
    assert device.waits.total() <= len(calls) + 3 and len(calls) > 10


def test_photos_and_pictures(tiny_model_dir: Path) -> None:
    photos = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    near = load_backend(tiny_model_dir)
    codes = near.encode_images(photos)
    with second_device():
        far = load_backend(tiny_model_dir, device=NAME)
        assert all(isinstance(p, FarTensor) for p in far.parameters())
        assert torch.equal(far.encode_images(photos).cpu(), codes)
        assert torch.equal(far.decode_images(codes).cpu(), near.decode_images(codes))


def test_the_double_refuses_to_mix() -> None:
    with second_device():
        far = torch.arange(3, device=NAME)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            far + torch.arange(3)
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            far.numpy()


class FarAccelerator(Accelerator):
    """The second device as Lightning wants devices."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to do."""

    def teardown(self) -> None:
        """Nothing to do."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    parse_devices = staticmethod(lambda devices: [0])
    get_parallel_devices = staticmethod(lambda devices: [torch.device(NAME, 0)])
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: NAME)


@pytest.fixture
def far_trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which Lightning trains on the second device."""

    def make(**settings: Any) -> L.Trainer:
        strategy = SingleDeviceStrategy(device=torch.device(NAME, 0))
        return trainer(**settings | {"accelerator": FarAccelerator(), "devices": 1, "strategy": strategy})

    @contextmanager
    def far() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(personalar.training.train.L, "Trainer", make)
            yield

    trainer = L.Trainer
    return far


METHODS = {
    "paper": ["memory.recompute=true", "model.recipe.dropout=0.2"],
    "lora": ["model.recipe.loss=answer", "model.recipe.z_loss=1e-5"],
}


def learn(run_dir: Path, device: str, *overrides: str) -> Concept:
    """Do a run of two steps a stage on `device`; return what it learned."""
    steps = [f"model.recipe.stages.{name}.steps=2" for name in ("embedding", "transformer", "lora")]
    words = dict(word.split("=", 1) for word in [*QUICK, *steps, "samples.grid_every_steps=1", *overrides])
    prepared = prepare(compose_config("+subject=cat", *(f"{k}={v}" for k, v in words.items())), run_dir)
    assert prepared is not None
    personalize(replace(prepared[0], device=device), prepared[1], command="test")
    return Concept.load(run_dir / "concept")


def tensors(concept: Concept) -> dict[str, torch.Tensor]:
    """Return all that it learned, by name."""
    adapters = [load(data) for name, data in concept.lora.items() if name.endswith("safetensors")]
    return {"[V]": concept.rows, **concept.weights, **(adapters[0] if adapters else {})}


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run(
    tiny_model_dir: Path, tiny_scorer_dir: Path, tmp_path: Path, far_trainer: Callable, method: str
) -> None:
    """Photos to report, grids and scores: all of it touches one device, and learns what a CPU learns."""
    judges = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    words = [f"model.path={tiny_model_dir}", *judges, f"method={method}", *METHODS[method]]
    near = learn(tmp_path / "near", "cpu", *words)
    with second_device(), far_trainer():
        far = learn(tmp_path / "far", NAME, *words)
    assert tensors(near).keys() == tensors(far).keys()
    start = dict(load_backend(tiny_model_dir).transformer.named_parameters())
    for name, learned in tensors(far).items():
        assert torch.allclose(learned, tensors(near)[name], atol=2e-3, rtol=1e-2), name
        assert name not in start or not torch.equal(learned, start[name])
    base = {p.name: p.read_bytes() for p in (tmp_path / "near" / "images" / "base").glob("*.png")}
    assert base == {p.name: p.read_bytes() for p in (tmp_path / "far" / "images" / "base").glob("*.png")}
    assert (tmp_path / "far" / "report.html").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_goes_on(
    tiny_model_dir: Path, tmp_path: Path, far_trainer: Callable, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A checkpoint is read to the host; what of it belongs on the device comes there."""
    words = [f"model.path={tiny_model_dir}", "scorer=none", f"method={method}", *METHODS[method]]
    words += ["trainer.checkpoint_every_steps=1"]
    loss, calls = personalar.training.module.sequence_loss, []

    def killed(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) in (2, 4):  # in the second step of each stage
            raise RuntimeError("killed")
        return loss(*args, **kwargs)

    with second_device(), far_trainer():
        whole = learn(tmp_path / "whole", NAME, *words)
        monkeypatch.setattr(personalar.training.module, "sequence_loss", killed)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="killed"):
                learn(tmp_path / "parts", NAME, *words)
        parts = learn(tmp_path / "parts", NAME, *words)
    assert len(calls) == 6
    for name, learned in tensors(whole).items():
        assert torch.equal(tensors(parts)[name], learned), name


def test_the_network_stays_where_it_is(tiny_model_dir: Path, tmp_path: Path, far_trainer: Callable) -> None:
    """Rows, codes and pictures come back to the host; the base does not, also when a stage ends."""
    with second_device() as device, far_trainer():
        learn(tmp_path, NAME, f"model.path={tiny_model_dir}", "scorer=none", "method=embedding_only")
    base = sum(p.nbytes for p in load_backend(tiny_model_dir).transformer.parameters())
    assert 0 < device.bytes_read < base / 2
