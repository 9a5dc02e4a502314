"""Sample grids during training: pictures of the base and of the current model, same prompts and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from personalar.core.png import save_png
from personalar.core.run_folder import steps_before
from personalar.reports.picture_grid import base_pictures, grid_picture

if TYPE_CHECKING:
    from personalar.training.module import PersonalizationModule


def log_grid(run: Any, path: Path, *, step: int, caption: str) -> None:
    """Log a grid to the W&B run `run`, in the panel "samples", at `step` of its slider."""
    import wandb

    # With a step of its own: W&B's global step only increases, and the curves use it too.
    run.log({"samples": wandb.Image(str(path), caption=caption), "samples_step": step})


class SampleGrid(L.Callback):
    """Writes `grids/{stage}_{step}.png` after each validation, and logs it to TensorBoard and W&B."""

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Draw and write the grid: `outputs`, the samples of the only batch. Only rank zero writes."""
        if not trainer.is_global_zero:
            return
        folder, base = pl_module.context.folder, base_pictures(pl_module.base_samples)
        stage, step = pl_module.stage.name, trainer.global_step
        picture = grid_picture(outputs, base, label=f"step {step}", title=f"{stage}, step {step}")
        path = save_png(picture, folder.path / "grids" / f"{stage}_{step:05d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(picture.convert("RGB"))
                logger.experiment.add_image("samples", pixels, step, dataformats="HWC")
            if isinstance(logger, WandbLogger):
                before = steps_before(folder.record, stage)
                log_grid(logger.experiment, path, step=before + step, caption=f"{stage}, step {step}")
