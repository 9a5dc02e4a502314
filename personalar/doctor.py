"""Check whether a run can start on this machine: `python -m personalar.doctor model=… trainer=…`.

It prints versions, devices, free disk space, the files of the model (or which are missing and where they come
from, or do not fit together), and a verdict; with subject.path=DIR also the table of photos. Nothing is
downloaded and no weight is loaded. The exit code is 0 if a run can start without a download.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from personalar.config.command_line import start
from personalar.config.commands import DoctorConfig
from personalar.config.model_config import PARTS, ModelConfig
from personalar.config.trainer_config import TrainerConfig, check_devices
from personalar.core.process import available_cores, check_memory, host_bytes, limit_note, package_versions
from personalar.models import loading


def devices(trainer: TrainerConfig, model: ModelConfig) -> Iterator[str]:
    """Yield cores, memory and GPUs. Raises ValueError if `trainer` needs more."""
    import torch

    yield f"cpu: {available_cores()} cores, {host_bytes() / 1e9:.0f} GB of memory"
    if note := limit_note():
        yield f"note: {note}"
    check_memory()
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"gpu {index}: {device.name}, {device.total_memory / 1e9:.0f} GB"
    if not torch.cuda.device_count():
        # With the version, because a CPU build of torch is the usual reason.
        yield f"gpu: none that torch {torch.__version__} can use"
    asked = f"{trainer.accelerator}, {trainer.devices} device(s), strategy {trainer.strategy}"
    yield f"trainer={trainer.name}: {asked}"
    if model.accelerator != "cpu" and trainer.accelerator == "cpu":
        yield f"note: model={model.name} is for a GPU; on a CPU a run takes hours to days"
    check_devices(trainer)


def model_files(model: ModelConfig) -> Iterator[str]:
    """Yield the paths of the model's files, their size and commits, and the sampling settings.

    Raises:
        FileNotFoundError, ValueError: files are missing or wrong.
    """
    import torch

    # Without the network: the doctor must answer quickly, also on a compute node.
    files = loading.offline_model(model)
    if files is None:
        parts = loading.hub_parts(model)
        yield from loading.statement(model, parts).splitlines()
        closing = loading.obstacle(parts) or "a run downloads them first"
        raise FileNotFoundError(f"files are missing: {closing}, or set model.path=DIR")
    weights, layout, sampling = files.weights(), files.layout, model.sampling
    size = sum(file.stat().st_size for file in weights) / 1e9
    yield f"model={model.name}: {len(weights)} weight file(s), {size:.2f} GB, {model.dtype} when loaded"
    for part, where in files.parts().items():
        yield f"{part}: {where}"
    pinned = loading.pin(model)
    for key in PARTS:
        # A branch such as "main" can move; the commit in the cache makes the run repeatable.
        asked, now = getattr(model, key), getattr(pinned, key)
        if asked and now and asked.revision != now.revision:
            setting = f"model.{key}.revision={now.revision}"
            yield f"{now.repo}: {asked.revision} is at this commit; pin it with {setting}"
    yield (
        f"{layout.resolution} px, {layout.buckets} sizes, guidance {sampling.cfg_scale:g}, "
        f"top-k {sampling.top_k}, top-p {sampling.top_p:g}, temperature {sampling.temperature:g}"
    )
    # On meta only sizes, tokenizer and the names and shapes of all tensors are read.
    files.load(dtype=torch.float32, device="meta")


def photos(config: DoctorConfig) -> Iterator[str]:
    """Print the table of the photos in `subject.path`, and yield how many can be used.

    Raises:
        FileNotFoundError: the folder is missing, or contains no usable photo.
    """
    from personalar.data.subject import read_folder

    files = loading.offline_model(config.model)
    layout, subject = files.layout if files else config.model.layout, config.subject
    assert subject.path is not None
    used = read_folder(Path(subject.path).expanduser(), layout.sizes if layout else None, subject.noun)
    yield f"{len(used)} photo(s) of {subject.path} can be used"
    if not subject.noun and any(photo.caption for photo in used):
        yield "note: set subject.noun=WORD to see where captions name the subject"


def disk() -> Iterator[str]:
    """Yield the free disk space for results and downloads. Raises ValueError if results cannot be written."""
    for name, folder in {"outputs": Path.cwd(), "hub cache": loading.cache_folder()}.items():
        yield f"{name}: {loading.free_bytes(folder) / 1e9:.1f} GB free in {folder}"
    # Only folders that exist: the doctor must not create any.
    for folder in filter(Path.is_dir, map(Path, (".", "outputs", "sweeps"))):
        try:  # permissions alone do not show a full or read-only disk
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(1 << 16))
        except OSError as error:
            raise ValueError(
                f"{folder.resolve()} cannot be written ({error.strerror}): change its permissions, free some "
                "space, or start the command in another folder"
            ) from error


def section(title: str, findings: Iterator[str]) -> tuple[str, bool]:
    """Return the section `title` as text, and whether it has no problem."""
    lines, ready = [title], True
    try:
        lines.extend(findings)  # what was yielded before an error stays in the list
    except (OSError, ValueError) as error:
        lines.extend(f"PROBLEM: {error}".splitlines())
        ready = False
    return "\n  ".join(lines), ready


def diagnose(config: DoctorConfig) -> None:
    """Print all sections and the verdict. Raises SystemExit (1) if there is a problem."""
    sections = {
        "versions": (f"{name} {version}" for name, version in package_versions().items()),
        "devices": devices(config.trainer, config.model),
        "model": model_files(config.model),
        "disk": disk(),
    }
    if config.subject.path is not None:
        sections["photos"] = photos(config)
    problems = []
    for title, findings in sections.items():
        text, ready = section(title, findings)
        print(text)
        if not ready:
            problems.append(title)
    if problems:
        print(f"verdict: not ready: see {', '.join(problems)} above")
        raise SystemExit(1)
    print("verdict: ready")


def main() -> None:
    """Entry point."""
    start("doctor", diagnose)


if __name__ == "__main__":
    main()
