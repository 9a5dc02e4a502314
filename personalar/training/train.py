"""Train one stage, from its starting concept to the concept it leaves, with a fresh Trainer and optimizer.

Stages share files only, so two commands with one stage each give the same result as one with both.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger

from personalar.concepts.concept import Concept
from personalar.config.run_config import LoggerConfig, Stage
from personalar.core.run_folder import steps_before
from personalar.core.types import Sample
from personalar.data.datamodule import SequenceStream, SubjectData
from personalar.generation.requests import Request
from personalar.reports.picture_grid import base_pictures
from personalar.training.callbacks.collect import CollectLearned
from personalar.training.callbacks.learning_check import note_move
from personalar.training.callbacks.monitor import FiniteLoss, SamplingBudget, StepWatch
from personalar.training.callbacks.progress import StageClock, StageProgress
from personalar.training.callbacks.sample_grid import SampleGrid
from personalar.training.callbacks.subject_scores import SubjectScores
from personalar.training.checkpoint import AtomicCheckpointIO, StageCheckpoint, find_checkpoint
from personalar.training.context import RunContext
from personalar.training.inputs import StageInputs, class_prompts, prepare
from personalar.training.memory import estimate, peak
from personalar.training.memory_fit import describe
from personalar.training.module import Network, PersonalizationModule
from personalar.training.network import build_network, build_sharded_network
from personalar.training.stage import describe_steps
from personalar.training.strategy import let_go, make_environment, make_strategy, shards_weights

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # a few kilobytes made on the fly: workers would only cost
    ".*in eval mode at the start of training.*",  # dropout is an argument of a pass, not a mode
    ".*Checkpoint directory .* exists and is not empty.*",  # that is what resuming is
    ".*isinstance.treespec, LeafSpec.*",  # torch's pytree, called by lightning
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


def make_loggers(config: LoggerConfig, folder: Path, stage: str) -> list[Logger]:
    """Return the CSV logger and those that `logger=` asks for; all write below `folder`."""
    parts = len(list((folder / stage).glob("part_*")))  # a resumed stage must not empty its first part's file
    loggers: list[Logger] = [
        CSVLogger(folder, name=stage, version=f"part_{parts}", flush_logs_every_n_steps=10)
    ]
    if config.tensorboard:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name=stage, version="tensorboard"))
    if config.wandb_project is not None:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(experiment=wandb.run, prefix=stage))  # `dashboard.start` opened it
    return loggers


def make_trainer(session: RunContext, stage: Stage, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a Trainer for one stage: one endless epoch, validation (the sample grid) counted in steps."""
    config, folder, numbers = session.config.trainer, session.folder, stage.numbers
    every = session.config.samples.grid_every_steps
    batch, accumulate = numbers.share(config.devices * config.num_nodes)
    accumulate *= batch // session.plans[stage.name].batch  # a batch that did not fit is passed in parts
    sharded = config.strategy.startswith("zero")
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(config, session.config.model.dtype),
        plugins=[*make_environment(), *([] if sharded else [AtomicCheckpointIO()])],
        max_steps=numbers.steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=numbers.gradient_clip,
        val_check_interval=every * accumulate if every else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1 if every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=make_loggers(session.config.logger, folder.path / "logs", stage.name),
        callbacks=callbacks,
        default_root_dir=folder.path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        barebones=False,
    )


def make_callbacks(
    session: RunContext, base_samples: list[Sample], advance, stage: Stage
) -> list[L.Callback]:
    """Return progress, checkpoint, sample grid and (with a scorer) the curves of scores."""
    folder, config = session.folder, session.config.trainer
    callbacks: list[L.Callback] = [
        StageProgress(advance),
        StageClock(),
        SampleGrid(
            folder=folder.path / "grids",
            base=base_pictures(base_samples),
            first_step=steps_before(folder.record, stage.name),
        ),
    ]
    scorer = session.config.scorer
    if scorer.scores:  # also above rank zero, which alone has the judges
        callbacks.append(SubjectScores(session.scorer, scorer.likeness_weight))
    checkpoint = StageCheckpoint(
        folder=folder, stage=stage.name, strategy=config.strategy, every=config.checkpoint_every_steps
    )
    callbacks.append(SamplingBudget(session.config.samples.time_share))
    callbacks.append(StepWatch())
    callbacks.append(FiniteLoss(last_good=lambda: checkpoint.saved))
    return [*callbacks, checkpoint]  # last: it keeps what the others counted


def leave_concept(
    session: RunContext, stage: Stage, start: Concept, trainer: L.Trainer, module: PersonalizationModule
) -> None:
    """Write the concept of the last step of `stage`, which started from `start`; rank zero calls it."""
    found = {type(callback): callback for callback in trainer.callbacks}
    concept = session.new_concept(stage.name, tokens=module.identifier.tokens, **found[CollectLearned].parts)
    session.folder.update_stage(
        stage.name,
        steps=trainer.global_step,
        seconds=round(found[StageClock].seconds, 3),
        processes=trainer.world_size,
    )
    note_move(session, stage, start, concept)
    concept.save(session.folder.concept(stage.name))


def make_module(
    session: RunContext,
    stage: Stage,
    inputs: Callable[[], StageInputs],
    trainer: L.Trainer | None,
    *,
    grid: Sequence[Request],
) -> PersonalizationModule:
    """Return the module of `stage`; its network is built once the processes of `trainer` have met."""
    recipe = session.config.model.recipe

    def build() -> Network:
        sharded = trainer is not None and shards_weights(trainer.strategy)
        build = build_sharded_network if sharded else build_network
        return build(session, stage, inputs().concept)

    return PersonalizationModule(
        build=build,
        stage=stage,
        sampler=lambda network: session.generator(network.backend, network.identifier),
        grid=grid,
        optimizer=session.plans[stage.name].optimizer,
        loss=recipe.loss,
        z_loss=recipe.z_loss,
        dropout=recipe.dropout,
    )


def make_data(
    session: RunContext, stage: Stage, inputs: Callable[[], StageInputs], module: PersonalizationModule
) -> SubjectData:
    """Return the data of `stage`; rank zero encodes photos and samples class images first."""
    recipe = session.config.model.recipe

    def make_stream() -> SequenceStream:
        concept, codes, replay = inputs()
        return SequenceStream(
            backend=module.network.backend, stage=stage, data=recipe.data, noun=session.subject.noun,
            tokens=concept.tokens, photo_codes=codes, replay=replay, loss=recipe.loss,
            seed=session.config.seed,
        )  # fmt: skip

    return SubjectData(
        prepare=inputs, make_stream=make_stream,
        batch=session.plans[stage.name].batch, num_grid=len(module.grid),
    )  # fmt: skip


def train_stage(
    session: RunContext, stage: Stage, *, start: str, grid: Sequence[Request], base_samples: list[Sample]
) -> None:
    """Train `stage` from the concept of stage `start` ("base": none) and leave its concept; resumes.

    All processes call it together; rank zero writes.

    Args:
        grid: the pictures to draw while it trains.
        base_samples: the base's pictures, to be shown beside them.
    """
    config, plan = session.config.trainer, session.plans[stage.name]
    world = config.devices * config.num_nodes
    last = find_checkpoint(session.folder, stage.name, world=world, strategy=config.strategy)
    session.reporter.say(describe(stage.name, plan, peak(estimate(plan))))
    recipe, subject = session.config.model.recipe, session.subject
    replayed = bool(class_prompts(recipe.data, noun=subject.noun, live=subject.live))
    session.reporter.say(describe_steps(stage, recipe.name, len(subject.images), replayed=replayed))
    phase = session.reporter.phase(f"stage {stage.name}", stage.numbers.steps, "steps")
    with quiet(), phase as advance:
        fit(session, stage, start, grid, make_callbacks(session, base_samples, advance, stage), last)
    # Trainer, data and callbacks refer to each other and the network, which must leave the device before the
    # next phase loads the base: two of a 7B do not fit.
    gc.collect()


def fit(
    session: RunContext,
    stage: Stage,
    start: str,
    grid: Sequence[Request],
    callbacks: list[L.Callback],
    last: Path | None,
) -> None:
    """Train with Lightning, from the checkpoint `last` if there is one, and write the concept."""
    inputs = cache(lambda: prepare(session, stage, start))  # rank zero makes them first, the others read them
    trainer = make_trainer(session, stage, callbacks)
    module = make_module(session, stage, inputs, trainer, grid=grid)
    trainer.callbacks.append(CollectLearned())
    trainer.fit(module, make_data(session, stage, inputs, module), ckpt_path=last, weights_only=True)
    if trainer.is_global_zero:
        leave_concept(session, stage, inputs().concept, trainer, module)
    trainer.strategy.barrier()  # the next stage starts from this file on every process
    for callback in trainer.callbacks:
        if isinstance(callback, StageCheckpoint):
            callback.end_if_asked(trainer)
    let_go(trainer.strategy)
