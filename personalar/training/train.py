"""Train one stage: read its starting concept, fit with a new Trainer and optimizer, write its concept.

Stages exchange only files, so two commands with one stage each give the same result as one command with both.
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
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger

from personalar.concepts.concept import Concept
from personalar.config.fingerprint import learning_settings
from personalar.config.plugins import build, fill_in
from personalar.config.run_config import Stage
from personalar.core.types import Sample
from personalar.data.class_images import class_prompts
from personalar.generation.requests import Request
from personalar.training.callbacks.collect import CollectLearned, StageClock
from personalar.training.callbacks.learning_check import note_move
from personalar.training.callbacks.subject_scores import StepSelection
from personalar.training.checkpoint import AtomicCheckpointIO, StageCheckpoint, find_checkpoint
from personalar.training.context import RunContext
from personalar.training.datamodule import SubjectDataModule
from personalar.training.inputs import stage_inputs
from personalar.training.memory import estimate, peak
from personalar.training.memory_fit import describe
from personalar.training.module import PersonalizationModule
from personalar.training.stage import describe_steps
from personalar.training.strategy import free_deepspeed, make_environment, make_strategy

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # a batch is a few kilobytes: starting workers would take longer
    ".*in eval mode at the start of training.*",  # dropout is an argument of the forward pass, not a mode
    ".*Checkpoint directory .* exists and is not empty.*",  # normal when a run resumes
    ".*isinstance.treespec, LeafSpec.*",  # a deprecation in torch, caused by Lightning
    ".*There is a wandb run already in progress.*",  # all stages log to one W&B run
)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's messages, and warnings about things that are intended (`EXPECTED_WARNINGS`)."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        yield


def build_all(group: str, chosen: Mapping[str, Any], context: RunContext, stage: str) -> list[Any]:
    """Return the configured objects of a group for one stage; entries that are null are left out.

    Args:
        group: name of the configuration group, for error messages.
        chosen: settings of each object by name, with placeholders {folder}, {stage} and {part}.
    """
    folder = context.folder.path
    # A resumed stage logs to part_1, part_2 and so on, because CSVLogger would overwrite the first file.
    part = len(list((folder / "logs" / stage).glob("part_*")))
    filled = fill_in(chosen, folder=str(folder), stage=stage, part=part)
    return [build(f"{group}.{name}", settings) for name, settings in filled.items() if settings is not None]


def log_settings(context: RunContext, stage: Stage, loggers: Sequence[Logger]) -> None:
    """Log the settings that determine the result."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):  # W&B got all settings when its run was started
            logger.log_hyperparams({"stage": stage.name, **learning_settings(context.config)})


def note_failure(context: RunContext, stage: Stage, error: Exception) -> None:
    """Print an error of a logger or callback that must not end the run."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    context.reporter.say(f"note: after training in stage {stage.name}: {reason}", style="yellow")


def guard_end(context: RunContext, stage: Stage, logger: Logger) -> None:
    """Make an error in `logger.finalize` a note.

    Lightning also calls it after a signal or an error, which another error would replace.
    """
    finalize = logger.finalize

    def guarded(status: str) -> None:
        try:
            finalize(status)
        except Exception as error:
            note_failure(context, stage, error)

    logger.finalize = guarded  # type: ignore[method-assign]


def make_plugins(context: RunContext) -> list[Any]:
    """Return the Lightning plugins: SLURM environment, atomic checkpoints, and those of `trainer.plugins`."""
    config = context.config.trainer
    plugins: list[Any] = make_environment()
    if not config.strategy.startswith("zero"):  # DeepSpeed writes checkpoints itself
        plugins.append(AtomicCheckpointIO())
    return plugins + [build("trainer.plugins", settings) for settings in config.plugins or ()]


def make_trainer(
    context: RunContext, stage: Stage, callbacks: list[L.Callback], loggers: list[Logger]
) -> L.Trainer:
    """Return a Trainer for one stage: one endless epoch; validation (the sample grid) every few steps."""
    config, numbers = context.config.trainer, stage.numbers
    every = context.config.samples.grid_every_steps
    batch, accumulate = numbers.share(config.devices * config.num_nodes)
    # A batch that does not fit into memory is split into micro-batches.
    accumulate *= batch // context.plans[stage.name].batch
    # Values that the user may override with trainer.NAME=...; those passed to `build` below are fixed.
    arguments = {
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
        val_check_interval=every * accumulate if every else None,  # Lightning counts batches, not steps
        check_val_every_n_epoch=None,
        limit_val_batches=1 if every else 0,
        # Lightning refuses this one without a logger.
        callbacks=[c for c in callbacks if loggers or not isinstance(c, LearningRateMonitor)],
        logger=loggers,
        default_root_dir=context.folder.path,
        use_distributed_sampler=False,  # the data stream itself divides the sequences between processes
    )


def train_stage(
    context: RunContext, stage: Stage, *, grid: Sequence[Request], base_samples: Sequence[Sample]
) -> None:
    """Train `stage` and write its concept; an interrupted stage resumes from its checkpoint.

    All processes call it; rank zero writes.

    Args:
        grid: pictures to sample during training.
        base_samples: the base's pictures, to show beside them.
    """
    plan, recipe, subject = context.plans[stage.name], context.config.model.recipe, context.subject
    prior = context.config.prior
    context.reporter.say(describe(stage.name, plan, peak(estimate(plan))))
    prompts = class_prompts(prior, noun=subject.noun, live=subject.live)
    replayed = bool(prompts) and prior.kind != "none"
    context.reporter.say(
        describe_steps(
            stage,
            recipe.name,
            len(subject.images),
            replayed=replayed,
            proxies=len(subject.proxies),
            proxy_share=context.config.subject.proxy_share,
        )
    )
    with quiet():
        fit(context, stage, grid, base_samples)
    # Trainer, data and callbacks refer to each other, so only the garbage collector frees the network. That
    # must happen before the next phase loads the base: two 7B models do not fit on one device.
    gc.collect()


def fit(context: RunContext, stage: Stage, grid: Sequence[Request], base_samples: Sequence[Sample]) -> None:
    """Train with Lightning, from the last checkpoint if there is one, and write the concept.

    Raises:
        SystemExit: a signal arrived in the last step, or earlier (see `StageCheckpoint`).
    """
    config = context.config.trainer
    world = config.devices * config.num_nodes
    last = find_checkpoint(context.folder, stage.name, world=world, strategy=config.strategy)
    collected, clock = CollectLearned(), StageClock()
    selection = [StepSelection()] if context.config.selection.scorer.scores else []
    chosen = build_all("callbacks", context.config.callbacks, context, stage.name)
    # Last, so that the network is released after all other callbacks have used it.
    callbacks = [*chosen, *selection, clock, collected]
    loggers = build_all("logger", context.config.logger, context, stage.name)
    for logger in loggers:
        guard_end(context, stage, logger)
    trainer = make_trainer(context, stage, callbacks, loggers)
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
        if not collected.learned:
            raise
        # All steps are done and their result is collected, so a logger or callback that fails at the end must
        # not lose it. `fit` has no more communication then; all processes meet at the barrier below.
        note_failure(context, stage, error)
    if trainer.is_global_zero:
        if trainer.global_step < stage.numbers.steps:
            context.reporter.say(
                f"note: a callback ended stage {stage.name} after {trainer.global_step} of "
                f"{stage.numbers.steps} steps; it counts as finished",
                style="yellow",
            )
        context.folder.update_stage(
            stage.name,
            steps=trainer.global_step,
            seconds=round(clock.seconds, 3),
            processes=trainer.world_size,
        )
        write_concept(module, collected.learned)
    trainer.strategy.barrier()  # every process reads this concept when the next stage starts
    for callback in callbacks:
        if isinstance(callback, StageCheckpoint):
            callback.end_if_signalled(trainer)
    free_deepspeed(trainer.strategy)


def write_concept(module: PersonalizationModule, learned: dict[str, Any]) -> None:
    """Write the concept of a stage's last step, or of its selected one; only rank zero calls it.

    Args:
        learned: see `PersonalizationModule.learned`.
    """
    context, stage = module.context, module.stage
    if selected := context.folder.selected(stage.name):
        concept = Concept.load(context.folder.best(stage.name, selected["step"]))
        context.reporter.say(
            f"stage {stage.name}: step {selected['step']} of {stage.numbers.steps} was selected "
            f"(val/selection {selected['value']:.4f})"
        )
    else:
        concept = module.concept(learned)
    note_move(context, stage, stage_inputs(context, stage).concept, concept)
    concept.save(context.folder.concept(stage.name))
