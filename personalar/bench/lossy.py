"""What the lossy ways of sampling change: `python -m personalar.bench lossy model=nano images=48`.

Every way draws the same prompts with the same seeds as its exact twin (the plain decoder, or for relaxed
drafts the same coupling without relaxing). The law of the next code is compared on the exact pictures' codes,
without guidance.

    modes=...           one or several of exact, cache_int8, cache_fp8, weights_int8, weights_fp8,
                        jacobi_maximal, relaxed_8, relaxed_32; all of them
    images=48           pictures by each
    scorer=nano         who judges
    out=FILE            the numbers, as JSON

Other arguments are settings of `personalar.sample` (`model=`, `trainer=gpu`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from personalar.bench.clock import counted_forwards
from personalar.bench.decode import compose_sample
from personalar.bench.machine import machine
from personalar.bench.roofline import synchronize
from personalar.bench.settings import split_own
from personalar.config.arguments import check_choice, prepare_arguments
from personalar.config.commands import SampleConfig
from personalar.config.compose import conf_dir
from personalar.config.scorer_config import ScorerConfig
from personalar.core.process import keep_memory, prepare_torch
from personalar.generation.generator import Generator
from personalar.generation.lossy import make_lossy, require_torchao
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.serialization import load_backend
from personalar.models.loading import obtain_model
from personalar.reports.bootstrap import difference
from personalar.scoring.registry import load_scorers

MAXIMAL = "decoder.coupling=maximal"
MODES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "exact": ("", "plain", ()),
    "cache_int8": ("exact", "plain", ("lossy.cache=int8",)),
    "cache_fp8": ("exact", "plain", ("lossy.cache=fp8",)),
    "weights_int8": ("exact", "plain", ("lossy.weights=int8",)),
    "weights_fp8": ("exact", "plain", ("lossy.weights=fp8",)),
    "jacobi_maximal": ("", "jacobi", (MAXIMAL,)),
    "relaxed_8": ("jacobi_maximal", "jacobi", (MAXIMAL, "decoder.relax=8", "decoder.relax_distance=0.1")),
    "relaxed_32": ("jacobi_maximal", "jacobi", (MAXIMAL, "decoder.relax=32", "decoder.relax_distance=0.3")),
}
"""Name -> its exact twin, its decoder, and further settings of `personalar.sample`."""
PLACES = ("in the snow", "on the beach", "in the jungle", "on a cobblestone street")
NOUNS = ("cat", "dog", "car", "teapot", "backpack", "vase")
PROMPTS = tuple(f"a photo of a {noun} {place}" for place, noun in product(PLACES, NOUNS))
OWN = {"modes": ",".join(MODES), "images": "48", "scorer": "nano", "out": ""}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What one way made."""

    codes: Tensor
    """(N, h, w)."""
    pictures: list[Image]
    laws: Tensor
    """log-probabilities of the exact pictures' codes, (N, codes, K)."""
    seconds: float
    forwards: float
    """Forwards for one batch of pictures."""
    megabytes: float
    """Weights of the blocks, and the cache of one picture."""


def read_settings(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split into the bench's own settings and those of `personalar.sample`.

    Raises:
        ValueError: for what is not known, with what is allowed.
    """
    own, rest = split_own(arguments, OWN)
    unknown = [name for name in own["modes"].split(",") if name not in MODES]
    if unknown:
        raise ValueError(f"modes={','.join(unknown)} is not known; allowed: {', '.join(MODES)}")
    if not own["images"].isdigit() or int(own["images"]) < 2:
        raise ValueError(f"images={own['images']} must be a number from 2")
    check_choice(conf_dir(), "scorer", own["scorer"])
    if not read_scorer(own["scorer"]).scores:
        raise ValueError(
            f"scorer={own['scorer']} judges nothing, and here pictures are judged: scorer=nano does"
        )
    rest = prepare_arguments(rest, schema=SampleConfig, conf=conf_dir(), needs_subject=False)
    return own, rest


def read_scorer(name: str) -> ScorerConfig:
    """Return the settings of `scorer=name`."""
    from omegaconf import OmegaConf

    values = OmegaConf.load(conf_dir() / "scorer" / f"{name}.yaml")
    del values["defaults"]  # Hydra's word for the schema that the next line gives
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ScorerConfig), values))


def check_library(names: list[str]) -> None:
    """Raise ModuleNotFoundError, before anything is measured, where a way needs a library that is missing."""
    needy = [name for name in names if name.startswith("weights_")]
    if needy:
        others = ",".join(name for name in names if name not in needy) or "exact"
        require_torchao(f"modes={','.join(needy)}", f"leave that out: modes={others}")


def compose_mode(name: str, rest: list[str]) -> SampleConfig:
    """Return the settings of `personalar.sample` that choose a way."""
    _, decoder, words = MODES[name]
    return compose_sample(decoder, [*rest, *words])


def asks(count: int) -> list[tuple[str, int]]:
    """Return `count` prompts and seeds."""
    return [(PROMPTS[k % len(PROMPTS)], k // len(PROMPTS)) for k in range(count)]


@torch.inference_mode()
def next_code_laws(backend: ChameleonBackend, prompts: Iterable[str], codes: Tensor) -> Tensor:
    """Return log-probabilities (N, codes, K) of every code of pictures (N, h, w), through a cache."""
    side = backend.protocol.config.resolution
    grammar = backend.grammar(*codes.shape[1:])
    laws = []
    for prompt, picture in zip(prompts, codes, strict=True):
        ids = backend.protocol.prompt_ids(prompt, side, side)
        drawn = iter((picture.flatten() + backend.code_offset).tolist())
        answer = [next(drawn) if forced is None else forced for forced in grammar]
        places = [len(ids) + k - 1 for k, forced in enumerate(grammar) if forced is None]
        row = torch.tensor([[*ids, *answer]], device=backend.device)
        cache = backend.new_cache(
            capacity=row.shape[1], pad=torch.zeros(1, dtype=torch.int64, device=row.device)
        )
        hidden = backend.forward(backend.embed(row), cache=cache)
        laws.append(backend.image_logits(hidden[0, places]).log_softmax(-1).cpu())
    return torch.stack(laws)


def megabytes(backend: ChameleonBackend, tokens: int) -> float:
    """Return the size of the blocks' weights and of the cache of one sequence of `tokens`."""
    cache = backend.new_cache(capacity=tokens, pad=torch.zeros(1, dtype=torch.int64, device=backend.device))
    blocks = sum(held_bytes(p) for p in backend.transformer.model.layers.parameters())
    return (blocks + sum(table.nbytes for table in (*cache.keys, *cache.values))) / 1e6


def held_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor, or of the parts of one that a library packed."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return sum(held_bytes(getattr(tensor, name)) for name in names) if names else tensor.nbytes


def draw(config: SampleConfig, count: int, twin: Drawn | None) -> Drawn:
    """Make the pictures of one way, and the laws on its twin's codes (or its own)."""
    from hydra.utils import instantiate

    backend = load_backend(
        obtain_model(config.model, say=lambda _: None),
        dtype=getattr(torch, config.model.dtype),
        device=config.trainer.torch_device,
        attention=config.trainer.attention,
    )
    make_lossy(backend, cache=config.lossy.cache, weights=config.lossy.weights)
    generator = Generator(
        backend=backend, decoder=instantiate(config.decoder.arguments), batch=config.model.sampling.batch
    )
    prompts, seeds = zip(*asks(count), strict=True)
    started = time.perf_counter()
    with counted_forwards(backend) as calls:
        codes = generator.codes(prompts, seeds)
        synchronize(backend.device)
    seconds = time.perf_counter() - started
    at_once = getattr(generator.decoder, "max_batch", generator.batch)
    grammar = backend.grammar(*codes.shape[1:])
    return Drawn(
        codes=codes.cpu(), pictures=generator.pictures(codes), seconds=seconds,
        laws=next_code_laws(backend, prompts, codes if twin is None else twin.codes.to(codes.device)),
        forwards=len(calls) / -(-count // at_once), megabytes=megabytes(backend, 64 + len(grammar)),
    )  # fmt: skip


def compare(name: str, way: Drawn, twin: Drawn, judges: Any, prompts: list[str]) -> dict[str, Any]:
    """Return one row: how a way differs from its exact twin."""
    texts = judges.clip.text_features(prompts)
    ours, theirs = ((judges.clip.image_features(each.pictures) * texts).sum(1) for each in (way, twin))
    alike = judges.dino.features(way.pictures) * judges.dino.features(twin.pictures)
    prompt_following = difference([(ours - theirs).tolist()])
    assert prompt_following is not None  # at least two pictures
    divergence = (twin.laws.exp() * (twin.laws - way.laws)).sum(-1)
    return {
        "mode": name, "of": MODES[name][0] or name,
        "kl_nats": divergence.mean().item(),
        "same_likeliest_code": (twin.laws.argmax(-1) == way.laws.argmax(-1)).float().mean().item(),
        "same_pictures": (way.codes == twin.codes).flatten(1).all(1).float().mean().item(),
        "clip_t": ours.mean().item(), "clip_t_change": prompt_following.mean,
        "clip_t_interval": [prompt_following.low, prompt_following.high],
        "dino_to_exact": alike.sum(1).mean().item(),
        "megabytes": way.megabytes, "forwards": way.forwards, "seconds": way.seconds,
        "x_faster": twin.seconds / way.seconds,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = (
        "way", "exact twin", "KL of the next code, nats", "same likeliest code", "same pictures", "CLIP-T",
        "change [95 %]", "DINO to the twin's", "MB of blocks and cache", "forwards", "x faster",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        low, high = row["clip_t_interval"]
        cells = (
            row["mode"], row["of"], f"{row['kl_nats']:.5f}", f"{100 * row['same_likeliest_code']:.1f} %",
            f"{100 * row['same_pictures']:.0f} %", f"{row['clip_t']:.3f}",
            f"{row['clip_t_change']:+.3f} [{low:+.3f}, {high:+.3f}]", f"{row['dino_to_exact']:.3f}",
            f"{row['megabytes']:.1f}", f"{row['forwards']:.0f}", f"{row['x_faster']:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(own: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """Measure every way that was asked for and its twin; return one record."""
    count = int(own["images"])
    chosen = [name for name in MODES if name in own["modes"].split(",")]
    names = [name for name in MODES if name in chosen or name in {MODES[each][0] for each in chosen}]
    check_library(names)
    config = compose_mode(names[0], rest)
    prepare_torch(config.trainer.threads)
    scorer = read_scorer(own["scorer"])
    judges = load_scorers(scorer.clip, scorer.dino, dino_preprocess=scorer.dino_preprocess)
    prompts = [prompt for prompt, _ in asks(count)]
    made: dict[str, Drawn] = {}
    rows = []
    for name in names:
        twin = made.get(MODES[name][0])
        made[name] = draw(compose_mode(name, rest), count, twin)
        rows.append(compare(name, made[name], twin or made[name], judges, prompts))
    return {
        "machine": machine(torch.device(config.trainer.torch_device)),
        "model": config.model.name,
        "images": count,
        "rows": rows,
    }


def main(arguments: list[str]) -> None:
    """Entry point: measure, print, write json."""
    keep_memory()
    own, rest = read_settings(arguments)
    record = run(own, rest)
    print(f"{record['model']}, {record['images']} pictures a way; {json.dumps(record['machine'])}")
    print(table(record["rows"]))
    if own["out"]:
        Path(own["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(own["out"]).write_text(json.dumps(record, indent=1) + "\n")
