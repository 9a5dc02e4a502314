"""Find the settings with which a run fits into memory, before any weight is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch

from personalar.config.run_config import RunConfig, Stage, TrainerConfig
from personalar.core.process import host_bytes, limit_note
from personalar.generation.batching import PICTURES_AT_ONCE
from personalar.models.stored_base import ModelFiles
from personalar.training.memory import OFFLOADED, Workload, estimate, peak, sampling_bytes
from personalar.training.model_prep import require_bitsandbytes

PROMPT_TOKENS = 64
"""Room for the wrapped prompt; the longest training template takes about 40."""
GB = 10**9
DEVICE_SHARE = 0.95
"""Share of a GPU's memory that a run may use; CUDA needs the rest."""
SAMPLING_SHARE = 0.9
"""Share of the device's memory for weights, keys and values in sampling."""


def check_devices(trainer: TrainerConfig) -> None:
    """Raise ValueError unless this machine has the GPUs that `trainer` asks for."""
    if trainer.accelerator != "gpu":
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        raise ValueError(f"trainer={trainer.name} needs a GPU, and torch sees none: choose trainer=cpu")
    if trainer.devices > found:
        raise ValueError(f"trainer.devices={trainer.devices} is out of range; allowed: 1 to {found} here")


def device_bytes(config: RunConfig) -> int:
    """Return what a run may use on each device: `memory.gigabytes`, or all that the device has."""
    if config.memory.gigabytes is not None:
        return int(config.memory.gigabytes * GB)
    if config.trainer.accelerator == "gpu" and torch.cuda.is_available():
        return int(DEVICE_SHARE * torch.cuda.get_device_properties(0).total_memory)
    return host_bytes() // config.trainer.devices


def allowance(config: RunConfig, limit: int) -> str:
    """Return in words what a run may use on each device, and who says so."""
    note = limit_note() if config.memory.gigabytes is None and config.trainer.accelerator == "cpu" else ""
    return f"memory={config.memory.name} allows {limit / GB:.2f} GB" + (f" ({note})" if note else "")


def shards(strategy: str, world: int) -> tuple[int, int, int]:
    """Return the number of shards of the weights, gradients and optimizer states."""
    cut = {"zero2": (1, world, world), "zero3": (world,) * 3, "zero3_offload": (OFFLOADED,) * 3}
    return cut.get(strategy, (1, 1, 1))


def check_host(config: RunConfig, work: Workload) -> None:
    """Raise ValueError if what `zero3_offload` keeps in the host's memory does not fit there."""
    if config.trainer.strategy != "zero3_offload":
        return
    items = estimate(replace(work, shards=(config.trainer.devices * config.trainer.num_nodes,) * 3))
    kept = ("frozen weights", "trained weights", "gradients", "optimizer states")
    needed, there = config.trainer.devices * sum(items[name] for name in kept), host_bytes()
    if needed > there:
        raise ValueError(
            f"trainer=zero3_offload keeps {needed / GB:.2f} GB in this machine's memory, which has "
            f"{there / GB:.2f} GB: choose trainer=zero3 with more GPUs, more machines "
            "(trainer.num_nodes), or method=lora"
        )


def workload(config: RunConfig, stage: Stage, files: ModelFiles) -> Workload:
    """Return the workload of `stage` on one device, before any saving of memory."""
    shape = files.shape(attention=config.trainer.attention, images=PICTURES_AT_ONCE)
    world = config.trainer.devices * config.trainer.num_nodes
    answer = config.model.recipe.loss == "answer"
    return Workload(
        shape=shape.network,
        dtype=getattr(torch, config.model.dtype),
        patterns=tuple(stage.trains.parameters),
        lora_rank=stage.trains.lora.rank,
        lora_every=stage.trains.lora.every_n_layers,
        base_bits=config.method.base_bits if stage.trains.lora.rank else 16,
        batch=stage.numbers.share(world)[0],
        tokens=PROMPT_TOKENS + shape.answer_tokens,
        image_tokens=shape.answer_tokens if answer else shape.codes,
        choices=shape.network.vocab_size if answer else shape.num_codes,
        recompute=bool(config.memory.recompute),
        optimizer=config.memory.optimizer or ("adamw8bit" if is_8bit(config) else "adamw"),
        dropout=config.model.recipe.dropout,
        shards=shards(config.trainer.strategy, world),
        sample_batch=config.model.sampling.batch,
        extra=shape.tokenizer_bytes,
        pictures=shape.decode_bytes,
    )


def is_8bit(config: RunConfig) -> bool:
    """Return whether the configured optimizer keeps its states in 8 bits; others count as AdamW."""
    return "8bit" in str(config.optimizer.get("_target_"))


def variants(work: Workload, config: RunConfig) -> Iterator[Workload]:
    """Yield `work` and smaller variants that the settings allow, the fastest first."""
    yield work
    parts = (
        [n for n in range(work.batch - 1, 0, -1) if work.batch % n == 0] if config.memory.split_batch else []
    )
    recompute = [True] if config.memory.recompute is None else []
    yield from (replace(work, batch=n) for n in parts)
    yield from (replace(work, recompute=r, batch=n) for r in recompute for n in (work.batch, *parts))
    adamw = config.optimizer.get("_target_") == "torch.optim.AdamW"
    if adamw and config.memory.optimizer is None and importlib.util.find_spec("bitsandbytes"):
        yield replace(work, recompute=work.recompute or bool(recompute), batch=(parts or [work.batch])[-1],
                      optimizer="adamw8bit")  # fmt: skip


def table(items: Mapping[str, int]) -> str:
    """Return the items in gigabytes, one line each, and their sum."""
    rows = [*((name, size) for name, size in items.items() if size), ("sum", sum(items.values()))]
    return "\n".join(f"  {name:18}{size / GB:9.3f} GB" for name, size in rows)


def cheaper(work: Workload, limit: int) -> list[str]:
    """Return the three changes nearest to what was asked that fit `limit`, as settings."""
    small = replace(work, batch=1, recompute=True)
    lora = replace(small, patterns=(), lora_rank=16, lora_every=1)
    candidates: Sequence[tuple[str, Workload]] = (
        ("memory.recompute=null memory.split_batch=true", small),
        ("trainer=zero2 trainer.devices=2", replace(small, shards=shards("zero2", 2))),
        ("trainer=zero3 trainer.devices=2", replace(small, shards=shards("zero3", 2))),
        ("trainer=zero3 trainer.devices=8", replace(small, shards=shards("zero3", 8))),
        ("method=lora", lora),
        ("method=embedding_only", replace(small, patterns=(), lora_rank=0)),
        ('method=qlora (pip install "personalar[quantized]")', replace(lora, base_bits=4)),
        ("method=lora trainer=zero3 trainer.devices=4", replace(lora, shards=shards("zero3", 4))),
        ("trainer=zero3_offload trainer.devices=8", replace(small, shards=shards("zero3_offload", 8))),
    )
    fits = (
        f"  {setting}: {needed / GB:.2f} GB"
        for setting, candidate in candidates
        if (needed := peak(estimate(candidate))) <= limit
    )
    return list(islice(fits, 3))  # no more are estimated: each takes seconds for a 7B


def check_libraries(config: RunConfig) -> None:
    """Raise ModuleNotFoundError, naming the knob, where a library that will be needed is not installed."""
    if config.method.base_bits == 4:
        require_bitsandbytes("method.base_bits=4")
    if config.memory.optimizer == "adamw8bit":
        require_bitsandbytes("memory.optimizer=adamw8bit")


def preflight(config: RunConfig, stages: Sequence[Stage], files: ModelFiles) -> dict[str, Workload]:
    """Return the settings of every stage that fit, by its name.

    Raises:
        ValueError: when a stage fits with none, with the items and the three nearest ways to fit.
        ModuleNotFoundError: when a library is missing.
    """
    check_devices(config.trainer)
    check_libraries(config)
    limit, chosen = device_bytes(config), {}
    for stage in stages:
        asked = workload(config, stage, files)
        for work in variants(asked, config):
            items = estimate(work)
            if peak(items) <= limit:
                check_host(config, work)
                chosen[stage.name] = work
                break
        else:
            ways = "\n".join(cheaper(asked, limit)) or "  none: this base needs a larger device"
            raise ValueError(
                f"stage={stage.name} with method={config.method.name} needs {peak(items) / GB:.2f} GB on "
                f"each device, {allowance(config, limit)}:\n{table(items)}\nwhat fits:\n{ways}"
            )
    return chosen


def sampling_work(config: RunConfig, stage: Stage, files: ModelFiles) -> Workload:
    """Return the work of drawing as many images together as fit, at most `model.sampling.batch`.

    It depends on the size of the device, not on its free memory, so a resumed run makes equal batches.

    Raises:
        ValueError: when a single image does not fit, with the items.
    """
    work, limit = workload(config, stage, files), device_bytes(config)
    one = sampling_bytes(replace(work, sample_batch=1))
    if peak(one) > limit:
        raise ValueError(
            f"sampling an image needs {peak(one) / GB:.2f} GB, {allowance(config, limit)}:\n{table(one)}\n"
            "choose a smaller base or a larger device"
        )
    image = peak(sampling_bytes(replace(work, sample_batch=2))) - peak(one)
    more = int((SAMPLING_SHARE * limit - peak(one)) // image)
    return replace(work, sample_batch=max(1, min(work.sample_batch, 1 + more)))


def describe_sampling(work: Workload) -> str:
    """Return in one line how many images are drawn together and what that needs."""
    needed = peak(sampling_bytes(work)) / GB
    return f"memory sampling: {needed:.2f} GB expected; {work.sample_batch} images together"


def describe(stage: str, work: Workload, needed: int) -> str:
    """Return in one line what was picked and what it needs, in bytes."""
    recompute = "blocks recomputed" if work.recompute else "nothing recomputed"
    passes = f"{work.batch} sequences a pass, {recompute}, {work.optimizer}"
    return f"memory {stage}: {needed / GB:.2f} GB expected; {passes}"
