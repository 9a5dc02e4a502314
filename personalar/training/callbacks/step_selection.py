"""Selection of a step: each sample grid is scored, and the learned tensors of the best step are kept.

The rule is that of RPO (arXiv 2407.12164): the highest weighted harmonic mean of likeness and prompt
following, by scorers other than those of the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L

from personalar.training.callbacks.collect import learned_concept, learned_parts
from personalar.training.callbacks.subject_scores import combined

if TYPE_CHECKING:
    from personalar.scoring.judges import Judges
    from personalar.training.context import RunContext
    from personalar.training.module import PersonalizationModule


def describe_selection(context: RunContext) -> str | None:
    """Return the rule and the scorers that select a step, for the protocol of tables; None without them."""
    if context.selector is None:
        return None
    weight = context.config.selection.likeness_weight
    networks = [f"{name} ({network})" for name, network in _networks(context, context.selector).items()]
    return f"each stage kept its best step by {' and '.join(networks)}, weight of likeness {weight:g}"


def reported_note(context: RunContext) -> str | None:
    """Return a warning if scores of the results select the step as well, else None."""
    if context.selector is None or context.scorer is None:
        return None
    networks = _networks(context, context.selector).items()
    both = [name for name, network in networks if network in context.scorer.names.values()]
    if not both:
        return None
    return (
        f"the steps are selected by {' and '.join(both)}, which are also reported: these scores favour the "
        "selected steps (choose another selection.scorer)"
    )


def _networks(context: RunContext, selector: Judges) -> dict[str, str]:
    """Return for each of `selection.measures` the description of its scorer."""
    declared = {measure.name: measure for measure in selector.measures}
    return {name: selector.names[declared[name].judges[0]] for name in context.config.selection.measures}


class StepSelection(L.Callback):
    """Writes the concept of the best step so far to `stages/{stage}/best/`, and names the step in run.json.

    Every process has all pictures of a grid, but only rank zero has scorers; it broadcasts the score.
    """

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log the score of the grid (`outputs`) as `val/selection`, and keep the step if it is the best one.

        Raises:
            ValueError: the scorers have no value for the pictures.
        """
        context, stage, settings = pl_module.context, pl_module.stage.name, pl_module.context.config.selection
        subject = [sample for sample in outputs if sample.kind == "subject"]
        lines = [] if context.selector is None else context.selector.score(subject)
        found = combined(lines, settings.likeness_weight, settings.measures)
        value = trainer.strategy.broadcast(found.get("harmonic"))
        if value is None:
            raise ValueError(
                f"selection.measures=[{','.join(settings.measures)}]: the scorers gave no value for the "
                "sample grid; choose other measures of selection.scorer"
            )
        pl_module.log("val/selection", value, batch_size=1)
        best = trainer.strategy.broadcast(context.folder.selected(stage))
        if best and best["value"] >= value:
            return
        parts = learned_parts(pl_module)  # by all processes, because sharded tensors are gathered
        if trainer.is_global_zero:
            concept = learned_concept(context, pl_module.stage, parts, pl_module.identifier.tokens)
            # First the files: run.json must never name a step that is missing.
            concept.save(context.folder.best(stage, trainer.global_step))
            context.folder.select(stage, step=trainer.global_step, value=value)
