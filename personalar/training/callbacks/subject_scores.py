"""Scores of the sample grids during training: curves, and the selection of a step.

Every process has all pictures of a grid, but only rank zero has scorers; it broadcasts their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import lightning as L

from personalar.core.measures import means

if TYPE_CHECKING:
    from personalar.scoring.judges import Judges
    from personalar.training.context import RunContext
    from personalar.training.module import PersonalizationModule


def harmonic(likeness: float, following: float, weight: float) -> float:
    """Return the reward of RPO (arXiv 2407.12164) for one picture, 0 to 1.

    It is the weighted harmonic mean of two cosine similarities, each mapped from [-1, 1] to [0, 1].

    Args:
        likeness: cosine similarity of picture and photos, -1 to 1.
        following: cosine similarity of picture and prompt, -1 to 1.
        weight: weight of the likeness, 0 to 1 (lambda in RPO).
    """
    like, follow = max((likeness + 1) / 2, 1e-8), max((following + 1) / 2, 1e-8)
    return 1 / (weight / like + (1 - weight) / follow)


def reward(
    lines: Iterable[Mapping[str, Any]], weight: float, measures: Sequence[str] = ("dino", "clip_t")
) -> float | None:
    """Return the mean of the pictures' rewards; None if no picture has both scores.

    Args:
        lines: lines of scores.jsonl.
        weight: see `harmonic`.
        measures: names of the measures of likeness and of prompt following.
    """
    pictures: dict[tuple[str, int], dict[str, float]] = {}
    for line in lines:
        pictures.setdefault((line["prompt"], line["seed"]), {})[line["scorer"]] = float(line["value"])
    like, follow = measures
    rewards = [
        harmonic(values[like], values[follow], weight)
        for values in pictures.values()
        if {like, follow} <= values.keys()
    ]
    return fmean(rewards) if rewards else None


class SubjectScores(L.Callback):
    """Logs the mean scores of each grid as `val/*`, with `val/harmonic`."""

    def __init__(self, likeness_weight: float = 0.5) -> None:
        """Set the weight of likeness in `val/harmonic`, 0 to 1."""
        self.likeness_weight = likeness_weight

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: PersonalizationModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Score the subject's samples of the grid (`outputs`), and log the means."""
        if not pl_module.context.config.scorer.scores:
            return
        values: dict[str, float | None] = {}
        if (scorer := pl_module.context.scorer) is not None:
            lines = scorer.score([sample for sample in outputs if sample.kind == "subject"])
            values = {**means(lines, scorer.measures), "harmonic": reward(lines, self.likeness_weight)}
        # All processes log the same values, because callbacks such as EarlyStopping act on them.
        shared = trainer.strategy.broadcast(values)
        logged = {f"val/{measure}": value for measure, value in shared.items() if value is not None}
        pl_module.log_dict(logged, batch_size=1)


class StepSelection(L.Callback):
    """Writes the concept of the best step so far to `stages/{stage}/best/`, and names the step in run.json.

    The rule is that of RPO: the highest `reward`, by scorers other than those of the results.
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
        found = reward(lines, settings.likeness_weight, settings.measures)
        value = trainer.strategy.broadcast(found)
        if value is None:
            raise ValueError(
                f"selection.measures=[{','.join(settings.measures)}]: the scorers gave no value for the "
                "sample grid; choose other measures of selection.scorer"
            )
        pl_module.log("val/selection", value, batch_size=1)
        best = trainer.strategy.broadcast(context.folder.selected(stage))
        if best and best["value"] >= value:
            return
        learned = pl_module.learned()  # by all processes, because sharded tensors are gathered
        if trainer.is_global_zero:
            # First the files: run.json must never name a step that is missing.
            pl_module.concept(learned).save(context.folder.best(stage, trainer.global_step))
            context.folder.select(stage, step=trainer.global_step, value=value)


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
