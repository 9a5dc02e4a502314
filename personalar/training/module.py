"""The LightningModule of one stage: builds the network, trains what the stage names, draws the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize

from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.adapters.lora import inject_lora
from personalar.concepts.concept import Concept
from personalar.config.plugins import build, fill_in
from personalar.config.run_config import Stage
from personalar.core.types import Sample
from personalar.data.codes import stream_seed
from personalar.generation.requests import Request
from personalar.models.base import Backend
from personalar.models.sharding import ordinary_modules
from personalar.training.context import RunContext
from personalar.training.inputs import stage_inputs
from personalar.training.loss import sequence_loss
from personalar.training.model_prep import (
    prepare_blocks,
    quantize_base,
    require_bitsandbytes,
    train_in_float32,
)
from personalar.training.stage import parameter_groups, select_parameters
from personalar.training.strategy import shards_weights


@dataclass(frozen=True, kw_only=True)
class Network:
    """The model of a stage."""

    backend: Backend
    identifier: Identifier
    weights: Mapping[str, nn.Parameter]
    """Parameters of the backend's transformer that train in this stage, by name."""
    adapters: Mapping[str, Mapping[str, nn.Parameter]]
    """Those of adapters, by the adapter's name."""


def choose_weights(transformer: nn.Module, stage: Stage, *, seed: int) -> dict[str, nn.Parameter]:
    """Return the transformer's parameters that train in `stage`; LoRA adapters are put in first."""
    lora = stage.trains.lora
    if lora.rank == 0:
        return select_parameters(transformer, stage.trains.parameters)
    generator = torch.Generator().manual_seed(stream_seed(seed, "lora"))
    return inject_lora(transformer, rank=lora.rank, every_n_layers=lora.every_n_layers, generator=generator)


def build_network(context: RunContext, stage: Stage, concept: Concept) -> Network:
    """Return the base in the state of `concept`, with what `stage` puts in."""
    backend = context.load_base()
    made = context.make_adapters()
    learned: dict[str, Mapping[str, nn.Parameter]] = {}
    identifier = concept.apply(backend, made, learned)
    if context.plans[stage.name].base_bits == 4:
        quantize_base(backend.blocks)
    weights = choose_weights(backend.transformer, stage, seed=context.config.seed)
    adapters = {}
    for name in stage.trains.adapters:
        generator = torch.Generator().manual_seed(stream_seed(context.config.seed, "adapter", name))
        adapters[name] = learned.get(name) or made[name].attach(backend, generator=generator)
    if not context.config.trainer.strategy.startswith("zero"):  # DeepSpeed keeps float32 copies itself
        train_in_float32(backend.transformer, weights)
    network = Network(backend=backend, identifier=identifier, weights=weights, adapters=adapters)
    return _finished(context, stage, network)


def build_sharded_network(context: RunContext, stage: Stage, concept: Concept) -> Network:
    """Return the same as `build_network`, sharded; call it within DeepSpeed's sharding context."""
    if context.plans[stage.name].base_bits == 4:
        raise ValueError("method.base_bits=4 cannot be sharded: use trainer=gpu, ddp or zero2")
    if concept.lora or concept.adapters or stage.trains.adapters:
        raise ValueError(
            "adapters, and stages after a LoRA stage, cannot be sharded: use trainer=ddp or zero2"
        )
    backend = context.model_files.load_sharded(
        dtype=context.dtype,
        device=context.device,
        attention=context.config.trainer.attention,
        changed=concept.weights,
    )
    with ordinary_modules():  # small; DeepSpeed shards them with the rest when training starts
        identifier = Identifier(tokens=concept.tokens, rows=concept.rows).to(context.device)
        weights = choose_weights(backend.transformer, stage, seed=context.config.seed)
    network = Network(backend=backend, identifier=identifier, weights=weights, adapters={})
    return _finished(context, stage, network)


def _finished(context: RunContext, stage: Stage, network: Network) -> Network:
    plan, compiled = context.plans[stage.name], context.config.trainer.compile_blocks
    prepare_blocks(network.backend.blocks, recompute=plan.recompute, compiled=compiled)
    return network


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `module` that train, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def make_optimizer(
    settings: Mapping[str, Any], groups: list[dict[str, Any]], *, eight_bit: bool = False, mixed: bool = False
) -> Any:
    """Return the optimizer that `settings` name.

    Args:
        groups: its parameters, with their rates.
        eight_bit: AdamW keeps its states in 8 bits (bitsandbytes), to fit into the memory.
        mixed: the Trainer's precision is mixed.
    """
    chosen = dict(settings)
    if chosen.get("_target_") == "torch.optim.AdamW":
        if eight_bit:
            require_bitsandbytes("memory.optimizer=adamw8bit")
            chosen["_target_"] = "bitsandbytes.optim.AdamW8bit"
        if eight_bit or mixed:  # Lightning cannot clip for a fused optimizer under mixed precision
            chosen.pop("fused", None)
    return build("optimizer", chosen, params=groups)


class PersonalizationModule(L.LightningModule):
    """Trains what a stage names; everything else keeps its bits.

    Args:
        context: the run, see `runs.personalize.prepare`.
        stage: the stage to train.
        grid: pictures to draw in validation; a validation batch holds numbers into it.
        base_samples: the base's pictures, shown beside them.
    """

    network: Network

    def __init__(
        self,
        context: RunContext,
        stage: Stage,
        *,
        grid: Sequence[Request] = (),
        base_samples: Sequence[Sample] = (),
    ) -> None:
        super().__init__()
        self.strict_loading = False  # a checkpoint holds the trainable tensors only
        self.context, self.stage = context, stage
        self.grid, self.base_samples = tuple(grid), tuple(base_samples)

    def configure_model(self) -> None:
        """Build the network once, sharded if the strategy asks for it; freeze all that does not train."""
        if hasattr(self, "network"):
            return
        sharded = self._trainer is not None and shards_weights(self.trainer.strategy)
        make = build_sharded_network if sharded else build_network
        self.hold(make(self.context, self.stage, stage_inputs(self.context, self.stage).concept))

    def hold(self, network: Network) -> None:
        """Take `network` as the one that trains, and freeze the rest of it."""
        self.network = network
        # Not the whole backend: the image tokenizer neither trains nor is it sharded.
        self.transformer, self.identifier = network.backend.transformer, network.identifier
        self.requires_grad_(False)
        for parameter in self.trained_weights():
            parameter.requires_grad_(True)
        self.identifier.requires_grad_(self.stage.trains.identifier)

    def trained_weights(self) -> list[nn.Parameter]:
        """Return what trains besides the identifier."""
        adapters = (p for parameters in self.network.adapters.values() for p in parameters.values())
        return [*self.network.weights.values(), *adapters]

    def release(self) -> None:
        """Drop the network when training is over; the identifier stays."""
        del self.network, self.transformer

    def use_weights(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Let the optimizer move `weights` instead of the network's own."""
        self.network = replace(self.network, weights=weights)

    def batch_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what a training pass over one batch minimises."""
        recipe = self.context.config.model.recipe
        return sequence_loss(
            self.network.backend, self.identifier, batch,
            loss=recipe.loss, z_loss=recipe.z_loss, dropout=recipe.dropout,
        )  # fmt: skip

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch and log it, averaged over processes."""
        loss = self.batch_loss(batch)
        self.log("train/loss", loss, batch_size=len(batch["ids"]), sync_dist=self.trainer.world_size > 1)
        return loss

    def validation_step(  # type: ignore[override]  # Lightning passes on to callbacks whatever it returns
        self, batch: Tensor, batch_idx: int
    ) -> list[Sample]:
        """Return the pictures of the grid; this process makes those whose numbers are in `batch` (B,)."""
        generator = self.context.generator(self.network.backend, self.identifier)
        # Cached: float32 copies are rounded once, not at every token. Closed: training wants the memory.
        with parametrize.cached(), closing(generator):
            made = generator.samples([self.grid[index] for index in batch.tolist()])
        by_number = self._exchange(batch, made)
        return [by_number[index] for index in sorted(by_number)]

    def _exchange(self, batch: Tensor, made: list[Sample]) -> dict[int, Sample]:
        """Return every process's pictures by number."""
        own = dict(zip(batch.tolist(), made, strict=True))
        if self.trainer.world_size == 1:
            return own
        parts: list[dict[int, Sample] | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, own)
        return {index: sample for part in parts for index, sample in (part or {}).items()}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the configured optimizer over the stage's groups, and its schedule by step."""
        config, numbers = self.context.config, self.stage.numbers
        groups = parameter_groups(self.stage, rows=self.identifier.rows, weights=self.trained_weights())
        optimizer = make_optimizer(
            config.optimizer,
            groups,
            eight_bit=self.context.plans[self.stage.name].optimizer == "adamw8bit",
            mixed="mixed" in str(config.trainer.precision),
        )
        schedule = fill_in(config.scheduler, steps=numbers.steps, schedule=numbers.schedule)
        scheduler = build("scheduler", schedule, optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen base out of the checkpoint."""
        state = {name: tensor.to("cpu", copy=True) for name, tensor in trainable_state(self).items()}
        checkpoint["state_dict"] = state
