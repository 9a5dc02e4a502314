"""The screen Draw: new pictures of a run's subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from personalar.core.png import read_png_metadata
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.runs.web import markup
from personalar.runs.web.jobs import LAST_STAGE, Jobs, stage_concepts
from personalar.runs.web.learning_screens import EVERY, OWN_BUTTONS, Screens, answered
from personalar.runs.web.page_commands import AXES, sample_command

PROMPTS = f"a photo of {SUBJECT_TOKEN} cat\na {SUBJECT_TOKEN} cat on the beach"
NO_AXIS = "none"


def draw_fields() -> list[Any]:
    """Create the fields, and return them in the order of the arguments of `start_drawing`."""
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompts = gr.Textbox(
                PROMPTS,
                label="Prompts, one a line",
                lines=6,
                max_length=20000,
                info=f"{SUBJECT_TOKEN} before the noun is the subject",
            )
            seeds = gr.Textbox("0 1", label="Seeds", info="every prompt is drawn with each")
        with gr.Column(scale=2, min_width=280):
            stage = gr.Dropdown([LAST_STAGE], label="Stage", info="whose concept is used")
            strength = gr.Slider(
                0, 1.5, value=1.0, step=0.05, label="Strength", info="0: the base, 1: as learned"
            )
            guidance = gr.Textbox("", label="Guidance", placeholder="that of the base")
    axes: list[Any] = []
    with gr.Accordion("X/Y grid", open=False):
        for label in ("Columns", "Rows"):
            with gr.Row():
                axes.append(gr.Dropdown([NO_AXIS, *AXES], value=NO_AXIS, label=label, min_width=140))
                axes.append(
                    gr.Textbox("", label=f"Values of the {label.lower()}", min_width=140, max_lines=4)
                )
        gr.Markdown("Values of prompt and seed are those above; what no axis varies has one value.")
    return [stage, prompts, seeds, guidance, strength, *axes]


def start_drawing(jobs: Jobs, run: str | None, stage: str, *given: Any) -> None:
    """Start the command that draws what the fields ask for."""
    if not run:
        raise ValueError("no run yet: learn a subject on the screen Train")
    prompts, seeds, guidance, strength, columns, x, rows, y = given
    axes = {"x": (columns, x), "y": (rows, y)}
    concepts = stage_concepts(jobs.folder(run))
    if stage not in concepts:
        raise ValueError(f"{run} has no concept of the stage {stage!r:.80}; allowed: {', '.join(concepts)}")
    out = jobs.pictures(run)
    command = sample_command(
        concepts[stage],
        out,
        prompts=prompts,
        seeds=seeds,
        guidance=guidance,
        strength=strength,
        axes={axis: varied for axis, varied in axes.items() if varied[0] != NO_AXIS},
    )
    jobs.start(out, command)


def draw_screen(screens: Screens, tab: gr.Tab) -> None:
    """Create the screen Draw; its stages are updated when its `tab` is opened."""
    jobs, fields = screens.jobs, draw_fields()
    stage = fields[0]
    with gr.Row():
        draw, stop = gr.Button("Draw", variant="primary", min_width=90), gr.Button("Stop", min_width=90)
    status = gr.HTML(elem_id="draw-status")
    gallery = gr.Gallery(label="Pictures", columns=4, height="auto", interactive=False, buttons=OWN_BUTTONS)
    facts = gr.JSON(label="Metadata of the selected picture")
    seen = gr.State("")

    def stages(run: str | None, chosen: str) -> Any:
        found = list(stage_concepts(jobs.folder(run))) if run else [LAST_STAGE]
        return gr.Dropdown(found, value=chosen if chosen in found else LAST_STAGE)

    def look(run: str | None, before: str) -> tuple[Any, ...]:
        if not run:
            return "", [], ""
        folder = jobs.pictures(run)
        state = jobs.state(folder)
        pictures = sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime, reverse=True)
        lines = state.log.splitlines()[-8:] if state.status in ("failed", "starting") else []
        panel = markup.output_panel(state, "\n".join(lines), working="drawing")
        shown = " ".join([run, *(path.name for path in pictures)])
        return panel, gr.skip() if shown == before else list(map(str, pictures)), shown

    def metadata(run: str, event: gr.SelectData) -> dict[str, Any]:
        # Only the name: the event comes from the browser.
        path = jobs.pictures(run) / Path(event.value["image"]["orig_name"]).name
        return {"file": str(path), **read_png_metadata(path)}

    gr.on([screens.run.change, tab.select], stages, [screens.run, stage], stage)
    draw.click(answered(lambda *given: start_drawing(jobs, *given)), [screens.run, *fields], None)
    stop.click(answered(lambda run: jobs.stop(jobs.pictures(run or ""))), screens.run, None)
    gallery.select(answered(metadata), screens.run, facts)
    gr.Timer(EVERY).tick(
        look, [screens.run, seen], [status, gallery, seen], show_progress="hidden", concurrency_limit=None
    )
