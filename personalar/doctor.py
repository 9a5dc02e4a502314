"""Say whether a command can run here, before it does: `python -m personalar.doctor model=… trainer=…`.

Versions, devices, the model's files (where they are, or what lacks and from where it would come), a verdict.
Nothing is downloaded and no weight is read; the exit status is 0 when all is well and 1 when something lacks.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from personalar.config.commands import DoctorConfig
from personalar.config.entry import start
from personalar.config.run_config import ModelConfig, TrainerConfig
from personalar.core.process import available_cores
from personalar.models.loading import (
    PARTS,
    cache_folder,
    free_bytes,
    hub_parts,
    obstacle,
    offline_model,
    pin,
    statement,
)

PACKAGES = (
    "personalar", "torch", "lightning", "transformers", "safetensors", "tokenizers", "huggingface_hub",
    "peft", "deepspeed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; `problem` says what to do about it, or None."""

    title: str
    lines: tuple[str, ...]
    problem: str | None = None


def versions() -> Finding:
    """Return the versions that a result depends on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return Finding(title="versions", lines=(f"python {platform.python_version()}", *found))


def devices(trainer: TrainerConfig, model: ModelConfig) -> Finding:
    """Return what there is to compute with, and whether it is what `trainer` asks for and `model` needs."""
    import torch

    lines = [f"cpu: {available_cores()} cores, {_memory_bytes() / 1e9:.0f} GB of memory"]
    count = torch.cuda.device_count()
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        lines.append(f"gpu {index}: {device.name}, {device.total_memory / 1e9:.0f} GB")
    if not count:
        lines.append(f"gpu: none that torch {torch.__version__} can use")
    lines.append(
        f"trainer={trainer.name}: {trainer.accelerator}, {trainer.devices} device(s), "
        f"strategy {trainer.strategy}"
    )
    if model.accelerator != "cpu" and trainer.accelerator == "cpu":
        lines.append(f"note: model={model.name} is for a GPU; on a CPU a run takes days")
    problem = None
    if trainer.accelerator in ("gpu", "cuda") and count < trainer.devices:
        problem = f"trainer={trainer.name} asks for {trainer.devices} GPU(s) and {count} can be used" + (
            ": choose trainer=cpu" if count == 0 else f": set trainer.devices={count}"
        )
    return Finding(title="devices", lines=tuple(lines), problem=problem)


def model_files(model: ModelConfig) -> Finding:
    """Return where the model's files are, or what lacks."""
    try:
        files = offline_model(model)
    except (FileNotFoundError, ValueError) as error:
        return Finding(title="model", lines=(f"model={model.name}",), problem=str(error))
    if files is None:
        parts = hub_parts(model)
        reason = obstacle(parts)
        lines = tuple(statement(model, parts).splitlines())
        closing = reason or "a run downloads them first"
        return Finding(
            title="model", lines=lines, problem=f"files are missing: {closing}, or set model.path=DIR"
        )
    sizes = [(file, file.stat().st_size) for file in files.weights()]
    total = sum(size for _, size in sizes)
    lines = [
        f"model={model.name}: {len(sizes)} weight file(s), {total / 1e9:.2f} GB, {model.dtype} when loaded"
    ]
    lines += [
        *(f"{part}: {where}" for part, where in files.parts().items()),
        *pins(model),
    ]
    sampling = model.sampling
    lines.append(
        f"{files.layout.resolution} px, {files.layout.buckets} sizes, guidance {sampling.cfg_scale:g}, "
        f"top-k {sampling.top_k}, top-p {sampling.top_p:g}, temperature {sampling.temperature:g}"
    )
    return Finding(title="model", lines=tuple(lines))


def pins(model: ModelConfig) -> list[str]:
    """Return, for each repository whose branch was downloaded, which commit that was and how to keep it."""
    pinned = pin(model)
    pairs = [(key, getattr(model, key), getattr(pinned, key)) for key in PARTS]
    return [
        f"{now.repo}: {asked.revision} is this commit; model.{key}.revision={now.revision} keeps it"
        for key, asked, now in pairs
        if asked and now and asked.revision != now.revision
    ]


def disk() -> Finding:
    """Return the free space where results and downloads go."""
    places = {"outputs": Path.cwd(), "hub cache": cache_folder()}
    lines = (f"{what}: {free_bytes(where) / 1e9:.1f} GB free in {where}" for what, where in places.items())
    return Finding(title="disk", lines=tuple(lines))


def examine(config: DoctorConfig) -> list[Finding]:
    """Look at everything."""
    return [versions(), devices(config.trainer, config.model), model_files(config.model), disk()]


def report(findings: list[Finding]) -> str:
    """Return the findings as text, the verdict last."""
    lines = []
    for finding in findings:
        lines += [finding.title, *(f"  {line}" for line in finding.lines)]
        if finding.problem:
            first, *others = finding.problem.splitlines()
            lines += [f"  PROBLEM: {first}", *(f"  {line}" for line in others)]
    problems = [finding.title for finding in findings if finding.problem]
    verdict = f"not ready: see {', '.join(problems)} above" if problems else "ready"
    return "\n".join([*lines, f"verdict: {verdict}"])


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def diagnose(config: DoctorConfig) -> None:
    """Say what was found, and exit with 1 when something lacks."""
    findings = examine(config)
    print(report(findings))
    if any(finding.problem for finding in findings):
        raise SystemExit(1)


def main() -> None:
    """Entry point."""
    start("doctor", diagnose)


if __name__ == "__main__":
    main()
