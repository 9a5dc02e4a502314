"""One stage, from the concept it starts with to the concept it leaves: a fresh Trainer, a fresh optimizer.

Stages meet on disk only, so two commands with one stage each compute what one command with both does.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn

from personalar.callbacks.progress import StageClock, StageProgress
from personalar.callbacks.sample_grid import SampleGrid
from personalar.callbacks.subject_scores import SubjectScores
from personalar.concept import Concept
from personalar.config import LoggerConfig
from personalar.dashboard import steps_before
from personalar.datamodule import (
    Replay,
    SequenceStream,
    SubjectData,
    cached_codes,
    encode_photos,
    stream_seed,
)
from personalar.identifier import Identifier, assign_tokens, random_rows, word_row
from personalar.models.backend import ChameleonBackend
from personalar.models.lora import inject_lora, lora_files
from personalar.module import PersonalizationModule
from personalar.prompts import SUBJECT_TOKEN, fill, image_token_names
from personalar.session import Session
from personalar.stage import Stage, select_parameters
from personalar.types import Sample

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # a few kilobytes made on the fly: workers would only cost
    ".*in eval mode at the start of training.*",  # the base is frozen and has no dropout
    ".*Checkpoint directory .* exists and is not empty.*",  # that is what resuming is
    ".*isinstance.treespec, LeafSpec.*",  # torch's pytree, called by lightning
)


def new_identifier(backend: ChameleonBackend, session: Session) -> Identifier:
    """Return fresh rows for [V] and one token per photo."""
    numbers = session.config.model.recipe.identifier
    names = (SUBJECT_TOKEN, *image_token_names(len(session.subject.images)))
    tokens = assign_tokens(names, backend.tokenizer.concept_ids)
    table = backend.transformer.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(stream_seed(session.config.seed, "identifier"))
    rows = random_rows(table, len(names), generator=generator)
    if numbers.init == "words":
        words = [backend.tokenizer.encode_text(f" {word}") for word in numbers.words]
        rows[:1] = word_row(table, words)
    return Identifier(tokens=tokens, rows=rows).to(table.device)


def choose_weights(backend: ChameleonBackend, stage: Stage, *, seed: int) -> dict[str, nn.Parameter]:
    """Return the transformer's parameters that train in `stage`; LoRA adapters are put in first."""
    lora = stage.trains.lora
    if lora.rank == 0:
        return select_parameters(backend.transformer, stage.trains.parameters)
    generator = torch.Generator().manual_seed(stream_seed(seed, "lora"))
    return inject_lora(
        backend.transformer, rank=lora.rank, every_n_layers=lora.every_n_layers, generator=generator
    )


def photo_codes(backend: ChameleonBackend, session: Session) -> list[torch.Tensor]:
    """Return the codes of the photos' crops and copies, computed once per run folder."""
    config, subject = session.config, session.subject
    data = config.model.recipe.data
    key = [
        subject.fingerprint,
        session.base,
        data.crops_per_photo,
        data.copies_per_photo,
        data.crop_scale,
        config.seed,
    ]
    return cached_codes(
        session.folder.path / "cache" / "photo_codes.safetensors",
        key,
        lambda: encode_photos(backend, subject.images, data, seed=config.seed),
    )


def replay_images(backend: ChameleonBackend, session: Session, stage: Stage) -> Replay | None:
    """Return class images made by the base (prior preservation), sampled once; None where unused.

    NOTE: `backend` must still have the base's weights.
    """
    config, data = session.config, session.config.model.recipe.data
    if stage.numbers.replay_ratio == 0 or not (data.replay_images and data.replay_prompts):
        return None
    templates = [data.replay_prompts[index % len(data.replay_prompts)] for index in range(data.replay_images)]
    prompts = [fill(template, session.subject.noun) for template in templates]
    seeds = [stream_seed(config.seed, "replay", index) % 2**31 for index in range(data.replay_images)]

    def make() -> list[torch.Tensor]:
        with session.reporter.phase("class images", len(prompts), "images") as advance:
            return list(session.generator(backend, None).codes(prompts, seeds, advance).cpu())

    key = [prompts, seeds, session.base, asdict(config.decoder)]
    codes = cached_codes(session.folder.path / "cache" / "class_codes.safetensors", key, make)
    return Replay(prompts=tuple(prompts), codes=tuple(codes))


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


def make_trainer(session: Session, stage: Stage, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a Trainer for one stage: one endless epoch, validation (the sample grid) counted in steps."""
    config, folder, numbers = session.config.trainer, session.folder, stage.numbers
    every = session.config.samples.grid_every_steps
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision=config.precision,
        max_steps=numbers.steps,
        max_epochs=-1,
        accumulate_grad_batches=numbers.accumulate,
        gradient_clip_val=numbers.gradient_clip,
        val_check_interval=every * numbers.accumulate if every else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1 if every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=make_loggers(session.config.logger, folder.path / "logs", stage.name),
        callbacks=callbacks,
        default_root_dir=folder.path,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        barebones=False,
    )


def make_callbacks(session: Session, base_samples: list[Sample], advance, stage: Stage) -> list[L.Callback]:
    """Return progress, checkpoint, sample grid and (with a scorer) the curves of scores."""
    folder = session.folder
    callbacks: list[L.Callback] = [
        StageProgress(advance),
        StageClock(),
        SampleGrid(
            folder=folder.path / "grids",
            base=folder.base_pictures(base_samples),
            first_step=steps_before(folder.record, stage.name),
        ),
        ModelCheckpoint(
            dirpath=folder.checkpoints(stage.name),
            filename="last",
            every_n_train_steps=session.config.trainer.checkpoint_every_steps,
            enable_version_counter=False,
            save_top_k=1,
        ),
    ]
    if session.scorer is not None:
        callbacks.append(SubjectScores(session.scorer.score))
    return callbacks


def train_stage(session: Session, stage: Stage, *, start: str, base_samples: list[Sample]) -> None:
    """Train `stage` from the concept of stage `start` ("base": none) and leave its concept; resumes."""
    backend, identifier = session.load(start)
    identifier = identifier or new_identifier(backend, session)
    codes = photo_codes(backend, session)
    replay = replay_images(backend, session, stage)
    weights = choose_weights(backend, stage, seed=session.config.seed)
    recipe = session.config.model.recipe
    grid = session.grid_requests(stage.name)
    module = PersonalizationModule(
        backend=backend, identifier=identifier, stage=stage, weights=weights,
        loss=recipe.loss, z_loss=recipe.z_loss,
        generator=session.generator(backend, identifier), grid=grid,
    )  # fmt: skip
    stream = SequenceStream(
        backend=backend, stage=stage, data=recipe.data, noun=session.subject.noun, tokens=identifier.tokens,
        photo_codes=codes, replay=replay, loss=recipe.loss, seed=session.config.seed,
    )  # fmt: skip
    data = SubjectData(stream=stream, num_grid=len(grid), pad=backend.tokenizer.pad)
    fit(session, stage, module, data, base_samples)
    state = {name: parameter.detach().cpu() for name, parameter in weights.items()}
    lora = (
        {f"lora/{name}": data for name, data in lora_files(backend.transformer).items()}
        if stage.trains.lora.rank
        else {}
    )
    Concept(
        base=session.base,
        subject={
            "name": session.subject.name,
            "noun": session.subject.noun,
            "fingerprint": session.subject.fingerprint,
        },
        stage=stage.name,
        tokens=identifier.tokens,
        rows=identifier.rows.detach().cpu(),
        weights={} if stage.trains.lora.rank else state,
        lora=lora,
        config=session.settings,
    ).save(session.folder.concept(stage.name))


def fit(
    session: Session,
    stage: Stage,
    module: PersonalizationModule,
    data: SubjectData,
    base_samples: list[Sample],
) -> None:
    """Run the stage's Trainer, from the last checkpoint if there is one, and note steps and seconds."""
    last = session.folder.checkpoints(stage.name) / "last.ckpt"
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with session.reporter.phase(f"stage {stage.name}", stage.numbers.steps, "steps") as advance:
        trainer = make_trainer(session, stage, make_callbacks(session, base_samples, advance, stage))
        with warnings.catch_warnings():
            for expected in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", expected)
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
    clock = next(callback for callback in trainer.callbacks if isinstance(callback, StageClock))
    session.folder.update_stage(stage.name, steps=trainer.global_step, seconds=round(clock.seconds, 3))
