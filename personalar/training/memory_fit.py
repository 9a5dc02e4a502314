"""Choose settings with which a run fits into memory, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from personalar.config.run_config import RunConfig, Stage
from personalar.config.trainer_config import check_devices
from personalar.core.process import host_bytes, limit_note
from personalar.models.base import PICTURES_AT_ONCE
from personalar.models.stored_base import ModelFiles
from personalar.training.memory import OFFLOADED, Workload, estimate, peak, sampling_bytes
from personalar.training.model_prep import require_bitsandbytes

PROMPT_TOKENS = 64
"""Assumed tokens of a prompt with its chat template; the longest training template has about 40."""
GB = 10**9
DEVICE_SHARE = 0.95
"""Share of a GPU's memory that a run may use; the CUDA context and fragmentation need the rest."""
SAMPLING_SHARE = 0.9
"""Share of the device's memory for weights and KV cache in sampling."""


def device_bytes(config: RunConfig) -> int:
    """Return the bytes that a run may use on each device: `memory.gigabytes`, or the device's memory."""
    if config.memory.gigabytes is not None:
        return int(config.memory.gigabytes * GB)
    if config.trainer.accelerator == "gpu" and torch.cuda.is_available():
        return int(DEVICE_SHARE * torch.cuda.get_device_properties(0).total_memory)
    # On a CPU all processes share the memory of the machine.
    return host_bytes() // config.trainer.devices


def allowance(config: RunConfig, limit: int) -> str:
    """Return, for a message, the memory that a run may use on each device and the origin of the limit."""
    note = limit_note() if config.memory.gigabytes is None and config.trainer.accelerator == "cpu" else ""
    return f"memory={config.memory.name} allows {limit / GB:.2f} GB" + (f" ({note})" if note else "")


def shards(strategy: str, world: int) -> tuple[int, int, int]:
    """Return the numbers of shards of (weights, gradients, optimizer states).

    Args:
        strategy: `trainer.strategy`.
        world: number of processes.
    """
    # ZeRO 2 shards gradients and states, ZeRO 3 also weights; ddp and single shard nothing.
    cut = {"zero2": (1, world, world), "zero3": (world,) * 3, "zero3_offload": (OFFLOADED,) * 3}
    return cut.get(strategy, (1, 1, 1))


def check_host(config: RunConfig, work: Workload) -> None:
    """Raise ValueError if the host's memory is too small for what `zero3_offload` keeps there."""
    if config.trainer.strategy != "zero3_offload":
        return
    items = estimate(replace(work, shards=(config.trainer.devices * config.trainer.num_nodes,) * 3))
    kept = ("frozen weights", "trained weights", "gradients", "optimizer states")
    # Every process of this machine keeps its own share in host memory.
    needed, there = config.trainer.devices * sum(items[name] for name in kept), host_bytes()
    if needed > there:
        raise ValueError(
            f"trainer=zero3_offload needs {needed / GB:.2f} GB of this machine's memory, which has "
            f"{there / GB:.2f} GB: choose trainer=zero3 with more GPUs, more machines "
            "(trainer.num_nodes), or method=lora"
        )


def workload(config: RunConfig, stage: Stage, files: ModelFiles) -> Workload:
    """Return the workload of `stage` on one device with the settings as they are."""
    shape = files.shape(images=PICTURES_AT_ONCE)
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
        tokens=PROMPT_TOKENS + config.model.recipe.identifier.rows - 1 + shape.answer_tokens,
        image_tokens=shape.answer_tokens if answer else shape.codes,
        choices=shape.network.vocab_size if answer else shape.num_codes,
        recompute=bool(config.memory.recompute),
        # Any optimizer without 8-bit states is estimated like AdamW.
        optimizer="adamw8bit" if "8bit" in str(config.optimizer.get("_target_")) else "adamw",
        dropout=config.model.recipe.dropout,
        shards=shards(config.trainer.strategy, world),
        sample_batch=config.model.sampling.batch,
        extra=shape.vq_bytes,
        pictures=shape.decode_bytes,
    )


def variants(work: Workload, config: RunConfig) -> Iterator[Workload]:
    """Yield `work` and variants of it that need less memory, as far as the settings allow, fastest first."""
    yield work
    # Micro-batches, which must divide the batch so that an optimizer step has the same sequences.
    batches = [work.batch]
    if config.memory.split_batch:
        batches += [n for n in range(work.batch - 1, 0, -1) if work.batch % n == 0]
    for batch in batches[1:]:
        yield replace(work, batch=batch)
    # Activation checkpointing computes each forward pass twice, so it is slower than micro-batches.
    if config.memory.recompute is None:
        for batch in batches:
            yield replace(work, recompute=True, batch=batch)


def table(items: Mapping[str, int]) -> str:
    """Return a table of the items in gigabytes, one line each, with their sum."""
    rows = [(name, size) for name, size in items.items() if size]
    rows.append(("sum", sum(items.values())))
    return "\n".join(f"  {name:18}{size / GB:9.3f} GB" for name, size in rows)


def on_more_devices(config: RunConfig, stage: Stage, files: ModelFiles) -> Iterator[tuple[str, Workload]]:
    """Yield the settings that divide `stage` between this machine's GPUs, each with its smallest workload."""
    count = torch.cuda.device_count() if config.trainer.accelerator == "gpu" else 0
    chosen = {"zero2": (2, count), "zero3": (2, count), "zero3_offload": (count,)}
    for strategy, devices in ((name, n) for name, numbers in chosen.items() for n in dict.fromkeys(numbers)):
        if not 2 <= devices <= count:
            continue
        with suppress(ValueError):  # other settings, or the batch, exclude it, or the host is too small
            trainer = replace(config.trainer, strategy=strategy, devices=devices)
            other = replace(config, trainer=trainer)
            *_, least = variants(workload(other, stage, files), other)
            check_host(other, least)
            yield f"trainer={strategy} trainer.devices={devices}", least


def alternatives(
    config: RunConfig, stage: Stage, files: ModelFiles
) -> Iterator[tuple[str, Sequence[Workload]]]:
    """Yield (setting, workloads), smallest change first.

    The setting, for a command line, needs less memory than `stage` with `config`; the workloads are those of
    each stage that the run would then have.
    """
    work = workload(config, stage, files)
    yield "memory.recompute=null memory.split_batch=true", [replace(work, batch=1, recompute=True)]
    for setting, other in on_more_devices(config, stage, files):
        yield setting, [other]
    *_, least = variants(work, config)
    quantized = 'pip install "personalar[quantized]"'
    if config.optimizer.get("_target_") == "torch.optim.AdamW":
        yield f"optimizer=adamw8bit ({quantized})", [replace(least, optimizer="adamw8bit")]
    # Every method trains the embeddings first, on the base in 16 bits.
    first = replace(least, patterns=(), lora_rank=0, base_bits=16)
    lora = replace(first, lora_rank=16, lora_every=1)
    yield "method=lora", [first, lora]
    yield "method=embedding_only", [first]
    yield f"method=qlora ({quantized})", [first, replace(lora, base_bits=4)]


def cheaper(config: RunConfig, stage: Stage, files: ModelFiles, limit: int) -> list[str]:
    """Return up to three settings, with their memory, with which `stage` fits into `limit` bytes here."""
    # Rank zero samples with the whole base, whatever the method and the number of devices.
    sampling = peak(sampling_bytes(replace(workload(config, stage, files), sample_batch=1)))
    found: list[str] = []
    for setting, works in alternatives(config, stage, files) if sampling <= limit else ():
        needed = max(sampling, *(peak(estimate(work)) for work in works))
        if needed <= limit:
            found.append(f"  {setting}: {needed / GB:.2f} GB")
        if len(found) == 3:  # an estimate takes seconds for a 7B, so make no more than needed
            break
    return found


def check_machine(config: RunConfig) -> None:
    """Check that this machine has the GPUs and libraries that the settings need.

    Raises:
        ValueError: GPUs are missing.
        ModuleNotFoundError: a library is missing.
    """
    check_devices(config.trainer)
    if config.method.base_bits == 4:
        require_bitsandbytes("method.base_bits=4")
    if str(target := config.optimizer.get("_target_")).startswith("bitsandbytes."):
        require_bitsandbytes(f"optimizer._target_={target}")


def preflight(config: RunConfig, stages: Sequence[Stage], files: ModelFiles) -> dict[str, Workload]:
    """Return, by stage name, the fastest workload of each stage that fits into memory.

    Raises:
        ValueError: no variant of a stage fits; the message has the items and up to three ways to make it fit.
        ModuleNotFoundError: a library is missing.
    """
    check_machine(config)
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
            # `items` are those of the last variant, the smallest.
            ways = (
                "\n".join(cheaper(config, stage, files, limit))
                or "  nothing: this base needs a larger device"
            )
            raise ValueError(
                f"stage={stage.name} with method={config.method.name} needs {peak(items) / GB:.2f} GB on "
                f"each device, {allowance(config, limit)}:\n{table(items)}\nwhat fits:\n{ways}"
            )
    return chosen


def sampling_work(config: RunConfig, stage: Stage, files: ModelFiles) -> Workload:
    """Return the workload of sampling with the largest batch that fits, at most `model.sampling.batch`.

    Raises:
        ValueError: a single image does not fit; the message has the items.
    """
    work, limit = workload(config, stage, files), device_bytes(config)
    one = sampling_bytes(replace(work, sample_batch=1))
    if peak(one) > limit:
        raise ValueError(
            f"sampling an image needs {peak(one) / GB:.2f} GB, {allowance(config, limit)}:\n{table(one)}\n"
            "choose a smaller base or a larger device"
        )
    # From the device's total memory, not its free memory, so that a resumed run samples in equal batches.
    image = peak(sampling_bytes(replace(work, sample_batch=2))) - peak(one)
    more = int((SAMPLING_SHARE * limit - peak(one)) // image)
    return replace(work, sample_batch=max(1, min(work.sample_batch, 1 + more)))


def describe_sampling(work: Workload) -> str:
    """Return one line: the expected memory of sampling and its batch size."""
    needed = peak(sampling_bytes(work)) / GB
    return f"memory sampling: {needed:.2f} GB expected; {work.sample_batch} images per batch"


def describe(stage: str, work: Workload, needed: int) -> str:
    """Return one line: the expected memory of a stage (`needed`, in bytes) and the settings chosen for it."""
    recompute = "activation checkpointing" if work.recompute else "no activation checkpointing"
    passes = f"{work.batch} sequences per pass, {recompute}, {work.optimizer}"
    return f"memory {stage}: {needed / GB:.2f} GB expected; {passes}"
