"""A toy plug-in for each extension point, outside of the package, as small as the contract allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from personalar.core.measures import Measure
from personalar.core.types import Sample, Subject


class ListLogger(Logger):
    """Writes each line of metrics as text."""

    def __init__(self, *, file: str, name: str) -> None:
        """Write into `file`."""
        super().__init__()
        self.file, self._name = Path(file), name

    @property
    def name(self) -> str:
        """The name of the logger."""
        return self._name

    @property
    def version(self) -> int:
        """The version, always the same."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        with self.file.open("a") as stream:
            stream.write(f"{self._name} {step} {' '.join(metrics)}\n")


class Forgetful(ListLogger):
    """Fails at the end of training, in the process that logs."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Raise an error like a server that cannot be reached."""
        raise ConnectionError("the server is gone")


def stripes(*, colour: tuple[int, int, int] | list[int], mask: int = 0) -> Subject:
    """Return a subject that is drawn by this function."""
    images = []
    for width in (4, 8, 16):
        image = Image.new("RGB", (96, 96), "white")
        for left in range(0, 96, 2 * width):
            image.paste(tuple(colour), (left, 0, left + width, 96))
        images.append(image)
    masks = (None, Image.new("L", (96, 96), mask), None) if mask else ()
    return Subject(name="stripes", noun="pattern", images=tuple(images), live=False, masks=masks)


class Scripted:
    """A scorer of two measures with a given value per call, for the selection of a step."""

    measures = (
        Measure(name="looks", title="looks", range=(-1, 1)),
        Measure(name="obeys", title="obeys", range=(-1, 1)),
        Measure(name="rated", title="rated", range=(0, 4)),
    )

    def __init__(self, *, looks: list[float]) -> None:
        """Give all pictures of call number k the likeness looks[k]."""
        self.values = list(looks)

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[float]]:
        """Return the next value."""
        count, value = len(samples), self.values.pop(0)
        return {"looks": [value] * count, "obeys": [0.5] * count, "rated": [4.0] * count}
