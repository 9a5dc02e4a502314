"""Baselines for training: transformers' `Trainer` with our network, and with that of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from benchmarks.baseline import hf_model
from benchmarks.machine import Moment, now, seconds_per_step
from torch import Tensor, nn

from personalar.config.run_config import Stage
from personalar.data.stream import SequenceStream, collate
from personalar.training.context import RunContext
from personalar.training.module import PersonalizationModule
from personalar.training.stage import select_parameters


class Ours(nn.Module):
    """Our network and loss, with the interface that transformers' Trainer expects."""

    def __init__(self, module: PersonalizationModule) -> None:
        super().__init__()
        self.transformer, self.identifier = module.transformer, module.identifier
        self._module = [module]  # in a list, so that its parameters are not registered twice

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Return {"loss"}."""
        return {"loss": self._module[0].batch_loss(batch)}


class Theirs(nn.Module):
    """transformers' own Chameleon with the same weights and its own loss, over the whole vocabulary.

    It trains the parameters of the stage, which have the same names. Logits of image codes are not masked.
    """

    def __init__(self, module: PersonalizationModule, stage: Stage) -> None:
        """Use the weights of `module`, whose optimizer then trains the parameters of this network.

        Raises:
            ValueError: the stage has LoRA or dropout, which this class does not support.
        """
        super().__init__()
        if stage.trains.lora.rank:
            raise ValueError("only full matrices can be compared; choose a method without LoRA")
        if module.context.config.model.recipe.dropout:
            raise ValueError("transformers' class has no dropout; set model.recipe.dropout=0")
        backend = module.network.backend
        self.model = hf_model(backend)
        self.model.config._attn_implementation = "sdpa"
        self.model.requires_grad_(False)
        self.identifier = module.identifier
        weights = select_parameters(self.model, stage.trains.parameters)
        for parameter in weights.values():
            parameter.requires_grad_(True)
        module.network = replace(module.network, weights=weights)

    def forward(self, ids: Tensor, loss_mask: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """Return {"loss"}."""
        embeds = self.identifier(ids, self.model.get_input_embeddings()(ids))
        labels = ids.masked_fill(~loss_mask, -100)
        return {"loss": self.model(inputs_embeds=embeds, labels=labels, use_cache=False).loss}


def trainer_seconds(
    model: nn.Module, module: PersonalizationModule, stream: SequenceStream, session: RunContext, stage: Stage
) -> Moment:
    """Return the seconds per step of transformers' Trainer on `model` with the optimizer of `module`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    configured = module.configure_optimizers()
    times: list[Moment] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    size = session.plans[stage.name].batch
    arguments = TrainingArguments(
        output_dir=str(session.folder.path / "transformers"), max_steps=stage.numbers.steps, report_to="none",
        per_device_train_batch_size=size, use_cpu=torch.device(session.device).type == "cpu",
        gradient_accumulation_steps=stage.numbers.sequences // size, remove_unused_columns=False,
        max_grad_norm=stage.numbers.gradient_clip or 0.0, dataloader_pin_memory=False, disable_tqdm=True,
        save_steps=session.config.trainer.checkpoint_every_steps, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=stream, callbacks=[Clock()],
        data_collator=lambda sequences: collate(sequences, pad=stream.pad),
        optimizers=(configured["optimizer"], configured["lr_scheduler"]["scheduler"]),
    )  # fmt: skip
    trainer.train()
    return seconds_per_step(times)
