"""Train one stage, from its starting concept to the concept it leaves, with a fresh Trainer and optimizer.

Stages share files only, so two commands with one stage each give the same result as one with both.
"""

from __future__ import annotations

import gc
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger

from personalar.config.plugins import build, fill_in
from personalar.config.run_config import Stage
from personalar.core.types import Sample
from personalar.generation.requests import Request
from personalar.training.callbacks.collect import CollectLearned, StageClock, with_earlier
from personalar.training.callbacks.learning_check import note_move
from personalar.training.checkpoint import AtomicCheckpointIO, StageCheckpoint, find_checkpoint
from personalar.training.context import RunContext
from personalar.training.datamodule import SubjectDataModule
from personalar.training.inputs import class_prompts, stage_inputs
from personalar.training.memory import estimate, peak
from personalar.training.memory_fit import describe
from personalar.training.module import PersonalizationModule
from personalar.training.stage import describe_steps
from personalar.training.strategy import let_go, make_environment, make_strategy

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # a few kilobytes made on the fly: workers would only cost
    ".*in eval mode at the start of training.*",  # dropout is an argument of a pass, not a mode
    ".*Checkpoint directory .* exists and is not empty.*",  # that is what resuming is
    ".*isinstance.treespec, LeafSpec.*",  # torch's pytree, called by lightning
    ".*There is a wandb run already in progress.*",  # it is this run's, and all stages log to it
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's warnings about things that are intended."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        yield


def make_loggers(context: RunContext, stage: str) -> list[Logger]:
    """Return the loggers of `logger=` for one stage; a resumed one begins another part."""
    return build_all("logger", context.config.logger, context, stage)


def make_callbacks(context: RunContext, stage: str) -> list[L.Callback]:
    """Return the callbacks of `callbacks=` for one stage."""
    return build_all("callbacks", context.config.callbacks, context, stage)


def build_all(group: str, chosen: Mapping[str, Any], context: RunContext, stage: str) -> list[Any]:
    """Return the objects of a group, those that are null left out, with the places of the stage filled in."""
    folder = context.folder.path
    part = len(list((folder / "logs" / stage).glob("part_*")))  # the first part's file must not be emptied
    filled = fill_in(chosen, folder=str(folder), stage=stage, part=part)
    return [build(f"{group}.{name}", settings) for name, settings in filled.items() if settings is not None]


def log_settings(context: RunContext, stage: Stage, loggers: Sequence[Logger]) -> None:
    """Give each logger the settings that determine the result; W&B has all of them from the start."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            logger.log_hyperparams({"stage": stage.name, **context.settings})


def make_plugins(context: RunContext) -> list[Any]:
    """Return Lightning plugins: a SLURM job's environment, atomic checkpoints, those of `trainer.plugins`."""
    config = context.config.trainer
    plugins: list[Any] = make_environment()
    if not config.strategy.startswith("zero"):  # DeepSpeed writes its own
        plugins.append(AtomicCheckpointIO())
    return plugins + [build("trainer.plugins", settings) for settings in config.plugins or ()]


def make_trainer(
    context: RunContext, stage: Stage, callbacks: list[L.Callback], loggers: list[Logger]
) -> L.Trainer:
    """Return a Trainer for one stage: one endless epoch, validation (the sample grid) counted in steps."""
    config, numbers = context.config.trainer, stage.numbers
    every = context.config.samples.grid_every_steps
    batch, accumulate = numbers.share(config.devices * config.num_nodes)
    accumulate *= batch // context.plans[stage.name].batch  # a batch that did not fit is passed in parts
    arguments = {
        "limit_val_batches": 1 if every else 0,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        **config.chosen,
        "plugins": make_plugins(context),
    }
    return build(
        "trainer",
        {"_target_": config._target_, **arguments},
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(config, context.config.model.dtype),
        max_steps=numbers.steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=numbers.gradient_clip,
        val_check_interval=every * accumulate if every else None,
        check_val_every_n_epoch=None,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=context.folder.path,
    )


def train_stage(
    context: RunContext, stage: Stage, *, grid: Sequence[Request], base_samples: Sequence[Sample]
) -> None:
    """Train `stage` and leave its concept; a stage that was interrupted goes on from its checkpoint.

    All processes call it together; rank zero writes.

    Args:
        grid: the pictures to draw while it trains.
        base_samples: the base's pictures, to be shown beside them.
    """
    plan, recipe, subject = context.plans[stage.name], context.config.model.recipe, context.subject
    context.reporter.say(describe(stage.name, plan, peak(estimate(plan))))
    replayed = bool(class_prompts(recipe.data, noun=subject.noun, live=subject.live))
    context.reporter.say(describe_steps(stage, recipe.name, len(subject.images), replayed=replayed))
    with quiet():
        fit(context, stage, grid, base_samples)
    # Trainer, data and callbacks refer to each other and the network, which must leave the device before the
    # next phase loads the base: two of a 7B do not fit.
    gc.collect()


def fit(context: RunContext, stage: Stage, grid: Sequence[Request], base_samples: Sequence[Sample]) -> None:
    """Train with Lightning, from the last checkpoint if there is one, and write the concept."""
    config = context.config.trainer
    world = config.devices * config.num_nodes
    last = find_checkpoint(context.folder, stage.name, world=world, strategy=config.strategy)
    collected, clock = CollectLearned(), StageClock()
    callbacks = [*make_callbacks(context, stage.name), clock, collected]
    trainer = make_trainer(context, stage, callbacks, make_loggers(context, stage.name))
    module = PersonalizationModule(context, stage, grid=grid, base_samples=base_samples)
    data = SubjectDataModule(context, stage, num_grid=len(grid))
    log_settings(context, stage, trainer.loggers)
    try:
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # before the first step Lightning exits with 1
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning ignores by then
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        if not collected.parts:
            raise
        # All steps are done and gathered: a logger or callback that fails at its end costs no result. The
        # other processes exchange nothing more in `fit`; all meet at the barrier below.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        context.reporter.say(f"note: after the last step of stage {stage.name}: {reason}", style="yellow")
    if trainer.is_global_zero:
        context.folder.update_stage(
            stage.name,
            steps=trainer.global_step,
            seconds=round(clock.seconds, 3),
            processes=trainer.world_size,
        )
        leave_concept(context, stage, collected.parts, module.identifier.tokens)
    trainer.strategy.barrier()  # the next stage starts from this file on every process
    for callback in callbacks:
        if isinstance(callback, StageCheckpoint):
            callback.end_if_asked(trainer)
    let_go(trainer.strategy)


def leave_concept(context: RunContext, stage: Stage, parts: dict[str, Any], tokens: dict[str, int]) -> None:
    """Write the concept of the last step of `stage`; rank zero calls it."""
    start = stage_inputs(context, stage).concept
    concept = context.new_concept(stage.name, tokens=tokens, **with_earlier(parts, start))
    note_move(context, stage, start, concept)
    concept.save(context.folder.concept(stage.name))
