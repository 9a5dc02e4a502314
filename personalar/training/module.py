"""The LightningModule of one stage: build the network, train the stage's parameters, sample the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize

from personalar.concepts.adapters.direction import Direction
from personalar.concepts.adapters.identifier import Identifier, class_row
from personalar.concepts.adapters.lora import inject_lora, lora_files
from personalar.concepts.concept import Concept
from personalar.config.plugins import build, fill_in
from personalar.config.run_config import Stage
from personalar.core.types import Sample
from personalar.data.codes import stream_seed
from personalar.data.prompts import subject_names
from personalar.data.stream import photo_sequences
from personalar.generation.requests import Request
from personalar.models.base import Backend
from personalar.models.sharding import whole_copy
from personalar.training.context import RunContext
from personalar.training.inputs import stage_inputs
from personalar.training.loss import sequence_loss
from personalar.training.model_prep import prepare_blocks, quantize_base, train_in_float32
from personalar.training.stage import parameter_groups, select_parameters


@dataclass(frozen=True, kw_only=True)
class Network:
    """The model of a stage and the parameters that the stage trains."""

    backend: Backend
    identifier: Identifier
    weights: Mapping[str, nn.Parameter]
    """Trained parameters of the backend's transformer, or of its LoRA, by name."""
    adapters: Mapping[str, Mapping[str, nn.Parameter]]
    """Trained parameters of adapters, by adapter and name."""
    penalties: Sequence[Callable[[], Tensor | None]] = ()
    """Terms of the loss that adapters add; see `Adapter.penalty`."""


def build_network(context: RunContext, stage: Stage, concept: Concept) -> Network:
    """Return the base with `concept` applied, and with the parameters that `stage` trains."""
    # The order matters: LoRA of an earlier stage is merged before quantization, LoRA of this stage is
    # added after it, and float32 copies come last.
    backend = context.load_base()
    made = context.make_adapters()
    learned: dict[str, Mapping[str, nn.Parameter]] = {}
    identifier = concept.apply(backend, made, learned)
    if context.plans[stage.name].base_bits == 4:
        quantize_base(backend.blocks)
    if rank := stage.trains.lora.rank:
        generator = torch.Generator().manual_seed(stream_seed(context.config.seed, "lora"))
        every = stage.trains.lora.every_n_layers
        weights = inject_lora(backend.transformer, rank=rank, every_n_layers=every, generator=generator)
    else:
        weights = select_parameters(backend.transformer, stage.trains.parameters)
    adapters = {}
    for name in stage.trains.adapters:
        generator = torch.Generator().manual_seed(stream_seed(context.config.seed, "adapter", name))
        adapters[name] = learned.get(name) or made[name].attach(
            backend, identifier=identifier, generator=generator
        )
        photos = photo_sequences(
            backend,
            context.config.model.recipe.data,
            noun=context.subject.noun,
            tokens=concept.tokens,
            photos=stage_inputs(context, stage).photo_codes,
        )
        made[name].prepare(backend, identifier, photos, initialize=name not in learned)
    if not context.config.trainer.strategy.startswith("zero"):  # DeepSpeed has its own float32 copies
        train_in_float32(backend.transformer, weights)
    network = Network(
        backend=backend,
        identifier=identifier,
        weights=weights,
        adapters=adapters,
        penalties=[made[name].penalty for name in adapters],
    )
    plan, compiled = context.plans[stage.name], context.config.trainer.compile_blocks
    prepare_blocks(backend.blocks, recompute=plan.recompute, compiled=compiled)
    return network


def make_optimizer(settings: Mapping[str, Any], groups: list[dict[str, Any]], *, mixed: bool = False) -> Any:
    """Return the optimizer that `settings` describe (`_target_` and arguments).

    Args:
        groups: parameter groups with learning rate and weight decay.
        mixed: the Trainer uses mixed precision.
    """
    chosen = dict(settings)
    # Lightning cannot clip for a fused optimizer under mixed precision.
    if mixed and chosen.get("_target_") == "torch.optim.AdamW":
        chosen.pop("fused", None)
    return build("optimizer", chosen, params=groups)


class PersonalizationModule(L.LightningModule):
    """Trains the parameters of a stage; all other parameters stay bit-identical.

    Args:
        context: the run, see `runs.personalize.prepare`.
        stage: the stage to train.
        grid: pictures to sample in validation; a validation batch contains indices into it.
        base_samples: the base's pictures, to show beside them.
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
        self.strict_loading = False  # a checkpoint contains only the trainable tensors
        self.context, self.stage = context, stage
        self.grid, self.base_samples = tuple(grid), tuple(base_samples)
        self._losses: list[Tensor] = []
        """Losses of the micro-batches of this optimizer step so far."""

    def configure_model(self) -> None:
        """Build the network, and freeze what the stage does not train."""
        if hasattr(self, "network"):  # Lightning calls this hook more than once
            return
        concept = stage_inputs(self.context, self.stage).concept
        self.set_network(build_network(self.context, self.stage, concept))

    def set_network(self, network: Network) -> None:
        """Use `network`, and make only the parameters that the stage trains require gradients."""
        self.network = network
        # Registered as submodules. Not the whole backend: its image tokenizer is not trained, and DeepSpeed
        # must not shard it.
        self.transformer, self.identifier = network.backend.transformer, network.identifier
        self.requires_grad_(False)
        for parameter in self.trained_weights():
            parameter.requires_grad_(True)
        self.identifier.requires_grad_(self.stage.trains.identifier)

    def trained_weights(self) -> list[nn.Parameter]:
        """Return the trained parameters except the identifier's."""
        trained = list(self.network.weights.values())
        for parameters in self.network.adapters.values():
            trained += parameters.values()
        return trained

    def batch_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the training loss (scalar) of one batch: `loss.sequence_loss` and adapters' penalties."""
        config, recipe = self.context.config, self.context.config.model.recipe
        prior = config.prior.weights(self.stage.numbers)
        if prior is not None and stage_inputs(self.context, self.stage).replay is None:
            prior = None
        total = sequence_loss(
            self.network.backend, self.identifier, batch,
            loss=recipe.loss, z_loss=recipe.z_loss, dropout=recipe.dropout,
            prior=prior,
        )  # fmt: skip
        penalties = [penalty() for penalty in self.network.penalties]
        return sum((term for term in penalties if term is not None), start=total)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch; log the mean of an optimizer step's as "train/loss"."""
        loss = self.batch_loss(batch)
        self._losses.append(loss.detach())
        # Not in `on_before_optimizer_step`, which DeepSpeed calls for every micro-batch.
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch:
            mean, distributed = torch.stack(self._losses).mean(), self.trainer.world_size > 1
            self.log("train/loss", mean, batch_size=len(batch["ids"]), sync_dist=distributed)
            self._losses.clear()
        return loss

    def validation_step(  # type: ignore[override]  # Lightning gives the value to the callbacks, of any type
        self, batch: Tensor, batch_idx: int
    ) -> list[Sample]:
        """Sample the pictures with the indices in `batch` (B,); return those of all processes, in order."""
        generator = self.context.generator(self.network.backend, self.identifier)
        # Cached: float32 weights are cast once, not at every token. Closed: frees the KV cache for training.
        with parametrize.cached(), closing(generator):
            made = generator.samples([self.grid[index] for index in batch.tolist()])
        by_number = self._exchange(batch, made)
        return [by_number[index] for index in sorted(by_number)]

    def _exchange(self, batch: Tensor, made: list[Sample]) -> dict[int, Sample]:
        """Return the pictures of all processes by index."""
        own = dict(zip(batch.tolist(), made, strict=True))
        if self.trainer.world_size == 1:
            return own
        parts: list[dict[int, Sample] | None] = [None] * self.trainer.world_size
        # With pickle, but only between processes of this run.
        torch.distributed.all_gather_object(parts, own)
        found: dict[int, Sample] = {}
        for part in parts:
            found |= part or {}
        return found

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the configured optimizer and its learning-rate scheduler, which is stepped at every step."""
        config, numbers = self.context.config, self.stage.numbers
        groups = parameter_groups(self.stage, rows=self.identifier.rows, weights=self.trained_weights())
        if config.model.recipe.identifier.optimizer == "direction" and not self.stage.trains.changes_network:
            optimizer: Any = Direction(groups, pull=self._pull_to_class())
        else:
            mixed = "mixed" in str(config.trainer.precision)
            optimizer = make_optimizer(config.optimizer, groups, mixed=mixed)
        schedule = fill_in(config.scheduler, steps=numbers.steps, schedule=numbers.schedule)
        scheduler = build("scheduler", schedule, optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _pull_to_class(self) -> Tensor:
        """Return the pull (K, D) of [V] to its class word; the tokens of single photos have none."""
        unit = F.normalize(class_row(self.network.backend, self.context.subject.noun), dim=1)
        subject = subject_names(self.identifier.tokens)
        is_subject = torch.tensor([[name in subject] for name in self.identifier.tokens])
        return self.context.config.model.recipe.identifier.pull * is_subject.to(unit) * unit

    def learned(self) -> dict[str, Any]:
        """Return the learned tensors as the fields "rows", "weights", "lora" and "adapters" of a `Concept`.

        All processes must call it, because sharded tensors are gathered.
        """
        weights = {name: whole_copy(p) for name, p in self.network.weights.items()}
        is_lora = self.stage.trains.lora.rank > 0
        return {
            "rows": whole_copy(self.identifier.rows),
            "weights": {} if is_lora else weights,
            "lora": lora_files(self.transformer, weights) if is_lora else {},
            "adapters": {
                name: {key: whole_copy(p) for key, p in parameters.items()}
                for name, parameters in self.network.adapters.items()
            },
        }

    def concept(self, learned: Mapping[str, Any]) -> Concept:
        """Return the concept with the tensors `learned`, and what its start contains and is not trained."""
        start = stage_inputs(self.context, self.stage).concept
        return self.context.new_concept(
            self.stage.name,
            tokens=self.identifier.tokens,
            rows=learned["rows"],
            weights={**start.weights, **learned["weights"]},
            lora=learned["lora"] or start.lora,  # one or the other: see stage._check_after_lora
            adapters={**start.adapters, **learned["adapters"]},
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save only the trainable parameters: the frozen base would add 14 GB for a 7B."""
        trained = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {name: tensor.to("cpu", copy=True) for name, tensor in trained.items()}
